from __future__ import annotations

import pytest
import torch

from batteries import EMA, CheckpointError, load_checkpoint, make_checkpoint, save_checkpoint

pytestmark = [pytest.mark.beside("transformers"), pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: make ecosystem"
)
WORDS = torch.arange(8)[None]


def tiny(kind: str) -> torch.nn.Module:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 8}
    if kind == "Llama":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"vocab_size": 16, "intermediate_size": 16}
    if kind == "Bert":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"vocab_size": 16, "intermediate_size": 16, "max_position_embeddings": 8}
    if kind == "T5":
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        sizes |= {"vocab_size": 16, "decoder_start_token_id": 0}
    options = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, **options, tie_word_embeddings=True)
    names = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM", "Bert": "BertForMaskedLM"}
    names["T5"] = "T5ForConditionalGeneration"
    model: torch.nn.Module = getattr(transformers, names[kind])(config).eval()
    return model


def logits(model: torch.nn.Module, kind: str) -> torch.Tensor:
    more = {"decoder_input_ids": WORDS} if kind == "T5" else {}
    found: torch.Tensor = model(WORDS, **more).logits
    return found


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "Bert", "T5"])
def test_tied_weights(kind: str) -> None:
    """Files of `save_pretrained` load like ours, and EMA keeps tied weights."""
    saved, first, second = tiny(kind), tiny(kind), tiny(kind)
    expected = logits(saved, kind)
    saved.save_pretrained("saved")  # type: ignore[operator]
    load_checkpoint("saved/model.safetensors", first)
    save_checkpoint(make_checkpoint("train", 1, saved), "last.pth")
    load_checkpoint("last.pth", second)
    for model in (first, second, EMA(saved).module):
        torch.testing.assert_close(logits(model, kind), expected)


@pytest.mark.beside("peft")
def test_adapters() -> None:
    """A file that has only adapters does not load into a model without them; an error says so."""
    peft = pytest.importorskip("peft", reason="peft is not installed: make ecosystem")
    options = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(tiny("GPT2"), options)
    adapted.save_pretrained("adapter")
    with pytest.raises(CheckpointError, match=r"nothing in model_state_dict .*with its adapters"):
        load_checkpoint("adapter/adapter_model.safetensors", tiny("GPT2"), strict=False)
    other = peft.get_peft_model(tiny("GPT2"), options)
    save_checkpoint(make_checkpoint("train", 1, adapted), "last.pth")
    load_checkpoint("last.pth", other)
    assert torch.equal(other.eval()(WORDS).logits, adapted.eval()(WORDS).logits)
