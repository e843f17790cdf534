// Axes, and the parts of all plots: reading values by key and pointer, zoom, pictures of a plot.

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9 && found.length < 50; at += 1) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high, count) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((to - from) / count));
  const parts = to - from <= 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = from; power <= to; power += every) {
    found.push(...parts.map((part) => Number(`${part}e${power}`)));
  }
  const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  return inside.length > 1 ? inside : ticks(low, high, count);
}

const isOn = (log) => (value) => value !== null && Number.isFinite(value) && (!log || value > 0);

// The lowest and highest value with some room; on a log axis of positive values.
function range(values, room, log) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!isOn(log)(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (log) {
    const wide = low === high ? 2 : (high / low) ** room;
    return [low / wide, high * wide];
  }
  if (low === high) return [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  return [low - (high - low) * room, high + (high - low) * room];
}

// Where values lie between two pixels, and which value lies at a pixel.
function axis([low, high], from, to, log = false) {
  const f = log ? Math.log10 : (value) => value;
  const [a, b] = [f(low), f(high)];
  const at = (value) => from + ((f(value) - a) / (b - a)) * (to - from);
  at.back = (pixel) => {
    const value = a + ((pixel - from) / (to - from)) * (b - a);
    return log ? 10 ** value : value;
  };
  at.ticks = (count) => (log ? logTicks : ticks)(low, high, count);
  return at;
}

// An empty plot. The options: width, height, xs and ys (lowest and highest), xlog, ylog, xName, whole.
function frameOf(options) {
  const { width, height, xs, ys, xName } = options;
  const labels = axis(ys, 0, 1, options.ylog).ticks(5).map((value) => number(value));
  const [left, right, top, bottom] = [14 + 7 * Math.max(...labels.map((text) => text.length), 2), width - 14, 12, height - 38];
  const x = axis(xs, left, right, options.xlog);
  const y = axis(ys, bottom, top, options.ylog);
  const parts = [];
  for (const value of y.ticks(5)) {
    parts.push(make("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    parts.push(make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  for (const value of x.ticks(Math.max(2, Math.floor(width / 90)))) {
    if (options.whole && !Number.isInteger(value)) continue;
    const shown = options.show ? options.show(value) : number(value);
    parts.push(make("line", { class: "grid", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }));
    parts.push(make("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, shown));
  }
  parts.push(make("text", { x: (left + right) / 2, y: height - 5, "text-anchor": "middle" }, xName));
  return { x, y, left, right, top, bottom, parts };
}

// A plot that is read with the pointer or with the arrow keys: a slider over its places.
// `tell(at)` shows a place and returns the text for it; `pixel(place)` says where it lies.
function plot(label, height, act = {}) {
  const svg = make("svg", { class: "plot", tabindex: 0, role: "slider", "aria-label": label, height });
  const readout = make("div", { class: "readout" });
  const found = { svg, readout, height, places: [], at: 0, pixel: null, tell: null };
  found.empty = (width, text) => {
    found.places = [];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, text));
    readout.replaceChildren();
  };
  found.move = (to, quiet = false) => {
    if (!found.places.length) return;
    found.at = Math.min(Math.max(to, 0), found.places.length - 1);
    svg.setAttribute("aria-valuemin", 0);
    svg.setAttribute("aria-valuemax", found.places.length - 1);
    svg.setAttribute("aria-valuenow", found.at);
    svg.setAttribute("aria-valuetext", found.tell(found.at));
    if (!quiet && act.moved) act.moved(found.places[found.at]);
  };
  on(svg, "keydown", (event) => {
    const far = Math.max(1, Math.round(found.places.length / 10));
    const to = {
      ArrowLeft: found.at - 1, ArrowDown: found.at - 1, ArrowRight: found.at + 1,
      ArrowUp: found.at + 1, PageDown: found.at - far, PageUp: found.at + far,
      Home: 0, End: found.places.length - 1,
    }[event.key];
    if (to !== undefined) found.move(to);
    else if (act.key && act.key(event.key, found.places[found.at])) found.move(found.at);
    else return;
    event.preventDefault();
  });
  const nearest = (event) => {
    const frame = svg.getBoundingClientRect();
    const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
    let [best, least] = [0, Infinity];
    found.places.forEach((place, index) => {
      const [x, y] = found.pixel(place);
      const distance = Math.hypot(x - px, y === null ? 0 : y - py);
      if (distance < least) [best, least] = [index, distance];
    });
    return best;
  };
  on(svg, "pointermove", (event) => found.places.length && found.move(nearest(event)));
  if (act.dragged) dragging(svg, found, act.dragged);
  return found;
}

function dragging(svg, found, dragged) {
  let from = null;
  const band = make("rect", { class: "band", y: 0, height: found.height });
  const at = (event) => event.clientX - svg.getBoundingClientRect().left;
  on(svg, "pointerdown", (event) => {
    if (event.button || !found.places.length || event.pointerType === "touch") return;
    from = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  on(svg, "pointermove", (event) => {
    if (from === null || Math.abs(at(event) - from) < 8) return;
    band.setAttribute("x", Math.min(from, at(event)));
    band.setAttribute("width", Math.abs(at(event) - from));
    svg.append(band);
  });
  on(svg, "pointerup", (event) => {
    const begun = from;
    from = null;
    band.remove();
    if (begun !== null && Math.abs(at(event) - begun) >= 8) {
      dragged(...[begun, at(event)].sort((a, b) => a - b));
    }
  });
  on(svg, "dblclick", () => dragged(null, null));
}

// Draws now and after each change of the width. The observer passes the width, because reading it
// from the element would be slow.
function drawWide(node, draw, when = (act) => act) {
  let width = 0;
  const redraw = when(() => { if (width >= 80) draw(width); });
  new ResizeObserver(([entry]) => {
    const before = width;
    width = Math.floor(entry.contentRect.width);
    if (width !== before) redraw();
  }).observe(node);
  watchers.push(redraw);
}

// ---------------------------------------------------------------- pictures of a plot

const LOOKS = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family"];

// The plot as a file. Its looks are in the file, because the style of this page is not.
function svgText(svg, title) {
  const copy = svg.cloneNode(true);
  const nodes = [...svg.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((node, index) => {
    const style = getComputedStyle(nodes[index]);
    LOOKS.forEach((name) => node.setAttribute(name, style.getPropertyValue(name)));
  });
  const { width, height } = svg.getBoundingClientRect();
  const back = getComputedStyle(svg.parentElement).backgroundColor;
  copy.prepend(make("title", null, title), make("rect", { width, height, fill: back }));
  for (const [name, value] of Object.entries({ width, height, xmlns: "http://www.w3.org/2000/svg" })) {
    copy.setAttribute(name, value);
  }
  ["class", "tabindex", "role"].forEach((name) => copy.removeAttribute(name));
  return new XMLSerializer().serializeToString(copy);
}

const addressOf = (text) => `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;

async function pngAddress(svg, title) {
  const image = new Image();
  image.src = addressOf(svgText(svg, title));
  await image.decode();
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function saving(found, title) {
  const save = (address, end) => {
    const name = title().replace(/[^\w.-]+/g, "_").slice(0, 60);
    make("a", { href: address, download: `${name}.${end}` }).click();
  };
  return make("span", { class: "save" },
    button("SVG", () => save(addressOf(svgText(found.svg, title())), "svg"), { "aria-label": "Save this plot as SVG" }),
    button("PNG", async () => save(await pngAddress(found.svg, title()), "png"), { "aria-label": "Save this plot as PNG" }));
}
