"""The model against Hugging Face's Llama."""

import itertools

import pytest
import torch

from toolkit.config.schema import ModelSection
from toolkit.model.llama import NOT_LEARNED, Llama, token_loss


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_hugging_faces_llama(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "tie_word_embeddings": tied,
    }
    ours = Llama(ModelSection(**words), seed=1, recompute=False)
    theirs = LlamaForCausalLM(LlamaConfig(**words, rms_norm_eps=1e-5)).eval()
    theirs.load_state_dict(_their_names(ours, tied=tied), strict=not tied)
    tokens = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(tokens), theirs(tokens).logits, atol=1e-5)


def _their_names(ours: Llama, *, tied: bool) -> dict[str, torch.Tensor]:
    named = dict(ours.named_weights())
    state = {"model.embed_tokens.weight": named["0.weight"], "model.norm.weight": named["3.weight"]}
    if not tied:
        state["lm_head.weight"] = named["4.weight"]
    for block in (1, 2):
        theirs = f"model.layers.{block - 1}."
        q, k, v = named[f"{block}.attention.qkv_proj.weight"].split([32, 16, 16])
        gate, up = named[f"{block}.feed_forward.gate_up_proj.weight"].chunk(2)
        state |= {
            f"{theirs}self_attn.q_proj.weight": q,
            f"{theirs}self_attn.k_proj.weight": k,
            f"{theirs}self_attn.v_proj.weight": v,
            f"{theirs}self_attn.o_proj.weight": named[f"{block}.attention.o_proj.weight"],
            f"{theirs}mlp.gate_proj.weight": gate,
            f"{theirs}mlp.up_proj.weight": up,
            f"{theirs}mlp.down_proj.weight": named[f"{block}.feed_forward.down_proj.weight"],
            f"{theirs}input_layernorm.weight": named[f"{block}.input_norm.weight"],
            f"{theirs}post_attention_layernorm.weight": named[f"{block}.post_norm.weight"],
        }
    return state


def test_an_untrained_model_guesses_evenly() -> None:
    model = Llama(ModelSection(vocab_size=500), seed=0, recompute=False)
    tokens = torch.randint(500, (2, 64), generator=torch.Generator().manual_seed(0))
    loss = token_loss(model(tokens), tokens)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(500.0)).item(), abs=0.3)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_document_is_predicted_as_if_it_stood_alone(recompute: bool) -> None:
    model = Llama(ModelSection(vocab_size=50, hidden_size=32, intermediate_size=48), seed=1, recompute=recompute)
    tokens = torch.randint(50, (2, 17), generator=torch.Generator().manual_seed(0))
    cuts = [(0, 5, 6, 17), (0, 1, 11, 17)]
    documents = torch.zeros_like(tokens, dtype=torch.int32)
    for row, ends in enumerate(cuts):
        for end in ends[1:-1]:
            documents[row, end:] += 1
    packed = model((tokens, documents))
    for row, ends in enumerate(cuts):
        for first, last in itertools.pairwise(ends):
            alone = model(tokens[row : row + 1, first:last])
            assert torch.allclose(packed[row : row + 1, first:last], alone, atol=1e-5)
    assert not torch.allclose(packed, model(tokens), atol=1e-3)


def test_the_loss_leaves_out_labels_that_are_not_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 9, 50, generator=generator), torch.randint(50, (2, 9), generator=generator)
    marked = labels.clone()
    marked[0, 3] = marked[1, :5] = NOT_LEARNED
    learned = marked >= 0
    wanted = token_loss(logits[learned][None], labels[learned][None])
    assert torch.allclose(token_loss(logits, (marked, learned.sum())), wanted)
