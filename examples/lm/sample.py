"""Generate text with the best weights of a run, in a plain model.

    python examples/lm/sample.py runs/lm/001/checkpoints/best.pth --prompt "def main("

Takes a few seconds. The best weights of a run with --fsdp are in `best.dcp`.
"""

from __future__ import annotations

import argparse

import torch
from models import GPT
from torch import Tensor

from batteries import checkpoint, load_checkpoint, seed_all


@torch.inference_mode()
def continued(
    model: GPT, tokens: Tensor, number: int, length: int, temperature: float, top_k: int
) -> Tensor:
    """Add `number` tokens, each drawn from the `top_k` most likely ones; shape (tokens,)."""
    for _ in range(number):
        logits = model(tokens[None, -length:])[0, -1] / temperature
        likeliest = logits.topk(min(top_k, len(logits)))
        drawn = likeliest.values.softmax(0).multinomial(1)
        tokens = torch.cat([tokens, likeliest.indices[drawn]])
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="best.pth, or best.dcp of a run with --fsdp")
    parser.add_argument("--prompt", default="def ")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    seed_all(args.seed)
    known = checkpoint.peek(args.checkpoint)  # everything except the tensors
    model = GPT(**known["model_args"]).eval()
    load_checkpoint(args.checkpoint, model)
    tokens = torch.tensor(list(args.prompt.encode()))
    length = known["experiment_args"]["length"]
    written = continued(model, tokens, args.tokens, length, args.temperature, args.top_k)
    print(bytes(written.tolist()).decode(errors="replace"))


if __name__ == "__main__":
    main()
