"""Models that ckptd saves as safetensors, and transformers loads; and the other way round."""

from __future__ import annotations

import pytest
import torch
import transformers


def gpt2():
    """Its output layer is its embedding: tied."""
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=64)
    return transformers.GPT2LMHeadModel(config)


def bert():
    """Nothing is tied."""
    config = transformers.BertConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=16,
        intermediate_size=32,
        vocab_size=64,
    )
    return transformers.BertModel(config)


def llama():
    """In bfloat16."""
    config = transformers.LlamaConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        hidden_size=16,
        intermediate_size=32,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


MODELS = [gpt2, bert, llama]


def assert_same(found, expected):
    """That two models have the same weights, bit for bit."""
    expected = expected.state_dict()
    found = found.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    """A model with weights that are not those of any other."""
    torch.manual_seed(3)
    return request.param()


def test_transformers_loads_ours(model, client, tmp_path):
    client.save(model.state_dict(), tmp_path / "model.safetensors", backend="safetensors").result()
    model.config.save_pretrained(tmp_path)
    loaded, told = type(model).from_pretrained(
        tmp_path, output_loading_info=True, dtype=next(model.parameters()).dtype
    )
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert_same(loaded, model)
    names = torch.arange(5)[None]
    model.eval(), loaded.eval()
    with torch.no_grad():
        assert torch.equal(loaded(names)[0], model(names)[0])


def test_ours_loads_transformers(model, client, tmp_path):
    model.save_pretrained(tmp_path)
    state = client.load(tmp_path / "model.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= set(getattr(model, "_tied_weights_keys", None) or ())


def test_load_state_dict(model, client, tmp_path):
    """The function below from_pretrained."""
    from transformers.modeling_utils import load_state_dict

    path = tmp_path / "model.safetensors"
    client.save(model.state_dict(), path, backend="safetensors").result()
    found = load_state_dict(str(path), map_location="cpu", weights_only=True)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name in found}
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
