// The start of the page. It uses all other modules.

const EVERY = 2000;  // milliseconds between two looks at a server

function showHead() {
  document.title = `Runs in ${data.logdir}`;
  document.querySelector("h1").textContent = `Runs in ${data.logdir}`;
  byId("about").textContent = `${counted(runs.length, "run")}, written `
    + `${moment(data.written)} UTC by batteries ${data.version}`;
  const problems = runs.flatMap((run) => run.problems.map((text) => `${run.name}: ${text}`));
  byId("problems").hidden = !problems.length;
  byId("problems").querySelector("summary").textContent =
    `${counted(problems.length, "problem")} with files`;
  byId("problems").querySelector("ul").replaceChildren(...problems.map((text) => make("li", null, text)));
  byId("which").replaceChildren(...runs.map((run, index) => make("option", { value: index }, run.name)));
}

// New data of the same runs; all choices stay.
function renew(text) {
  take(text);
  runKey = null;
  showHead();
  makeTools();
  changed();
}

async function watch() {
  let tag = "";
  const told = byId("live");
  for (;;) {
    await new Promise((done) => { setTimeout(done, EVERY); });
    if (document.hidden) continue;
    try {
      const answer = await fetch("data", { headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        const text = await answer.text();
        if (tag || text !== byId("data").textContent) renew(text);
        tag = answer.headers.get("ETag");
      } else if (answer.status !== 304) throw new Error(`the server says ${answer.status}`);
      told.textContent = "live";
    } catch (error) {
      told.textContent = `no longer live: ${error.message}. Is \`batteries report --watch\` still running?`;
    }
  }
}

// Links to parts of the page do not change the address, because it holds the view.
for (const link of document.querySelectorAll("nav a")) {
  on(link, "click", (event) => {
    event.preventDefault();
    const part = document.querySelector(link.getAttribute("href"));
    part.scrollIntoView();
    part.querySelector("h2").focus();
  });
}

take(byId("data").textContent);
fromHash(location.hash);
showHead();
startTable();
makeTools();
startCurves();
startScatter();
startParallel();
startCompare();
startCheckpoints();
startRun();
changed();
on(window, "hashchange", () => {
  fromHash(location.hash);
  makeTools();
  changed();
});
if (document.querySelector("meta[name='batteries-live']")) watch();
