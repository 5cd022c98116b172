"""Attention: against the models of transformers, against a loop over the pairs of steps, and what it refuses."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from minrnn_lightning import LanguageTask
from minrnn_lightning.nn.mixers import AttentionMixer


def copy(target, source):
    target.weight.data.copy_(source.weight)
    if target.bias is not None:
        target.bias.data.copy_(source.bias)


def test_loss_of_a_gpt_with_the_same_weights():
    """GPT-NeoX is the published model with LayerNorm, rotary positions and a GELU MLP, as in our block."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=65,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        use_parallel_residual=False,
        rotary_pct=1.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        max_position_embeddings=512,
    )
    gpt = transformers.GPTNeoXForCausalLM(config).eval()
    args = {"heads": 4, "bias": True}
    task = LanguageTask(65, 65, "attention", 64, 2, 1.0, 0, 4.0, mixer_args={"attention": args}).eval()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=0.3)
    copy(task.head, gpt.get_output_embeddings())
    task.encoder.weight.data.copy_(gpt.get_input_embeddings().weight)
    copy(task.backbone.norm, gpt.gpt_neox.final_layer_norm)
    for block, layer in zip(task.backbone.blocks, gpt.gpt_neox.layers, strict=True):
        copy(block.mixer_norm, layer.input_layernorm)
        copy(block.mlp_norm, layer.post_attention_layernorm)
        copy(block.mlp[0], layer.mlp.dense_h_to_4h)
        copy(block.mlp[2], layer.mlp.dense_4h_to_h)
        copy(block.mixer.out, layer.attention.dense)
        qkv = layer.attention.query_key_value  # rows by head, then by q, k, v; ours by q, k, v, then by head
        block.mixer.qkv.weight.data.copy_(qkv.weight.view(4, 3, 16, 64).transpose(0, 1).reshape(192, 64))
        block.mixer.qkv.bias.data.copy_(qkv.bias.view(4, 3, 16).transpose(0, 1).reshape(192))
    tokens = torch.randint(65, (3, 101))
    with torch.no_grad():
        expected = gpt(tokens, labels=tokens).loss
        logits, _ = task(tokens[:, :-1])
        loss = task.loss(logits, tokens[:, 1:])
    assert 4 < expected < 100
    assert abs(loss - expected) < 1e-5 * expected


def test_grouped_queries_of_llama_with_the_same_weights():
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2)
    config._attn_implementation = "sdpa"
    llama, mixer = LlamaAttention(config, 0), AttentionMixer(64, heads=8, kv_heads=2)
    parts = llama.q_proj, llama.k_proj, llama.v_proj
    mixer.qkv.weight.data.copy_(torch.cat([part.weight for part in parts]))
    copy(mixer.out, llama.o_proj)
    x = torch.randn(2, 33, 64)
    rotations = LlamaRotaryEmbedding(config)(x, torch.arange(33).unsqueeze(0))
    causal = torch.full((33, 33), -torch.inf).triu(1).expand(2, 1, 33, 33)
    expected, *_ = llama(x, rotations, causal)
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-5, atol=1e-5)


def pair_by_pair(mixer, x, reset):
    """The definition, in loops: rotations as complex numbers at absolute places."""
    batch, length, _ = x.shape
    q, k, v = mixer.qkv(x).view(batch, length, -1, mixer.head_dim).split([mixer.heads, *[mixer.kv_heads] * 2], 2)
    half = mixer.head_dim // 2
    angle = torch.arange(length, dtype=torch.float64)[:, None] / mixer.base ** (torch.arange(half) / half)
    turned = [
        torch.complex(s[..., :half], s[..., half:]) * torch.polar(torch.ones(()).double(), angle)[:, None]
        for s in (q, k)
    ]
    out = torch.zeros(batch, length, mixer.heads, mixer.head_dim, dtype=x.dtype)
    for row in range(batch):
        start = 0
        for t in range(length):
            start = t if reset[row, t] else start
            first = max(start, t + 1 - (mixer.window or length))
            for head in range(mixer.heads):
                shared = head // (mixer.heads // mixer.kv_heads)
                products = (turned[0][row, t, head].conj() * turned[1][row, first : t + 1, shared]).real.sum(-1)
                weights = F.softmax(products / math.sqrt(mixer.head_dim), 0)
                out[row, t, head] = weights @ v[row, first : t + 1, shared]
    return mixer.out(out.flatten(2))


@settings(deadline=None, max_examples=30)
@given(
    length=st.integers(1, 20),
    window=st.none() | st.integers(1, 25),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (2, 1)]),
    cut=st.integers(0, 20),
    resets=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 19)), max_size=5),
)
def test_windows_groups_and_resets(length, window, heads, cut, resets):
    torch.manual_seed(0)
    mixer = AttentionMixer(8, 2.0, heads=heads[0], kv_heads=heads[1], window=window, base=100.0).double()
    x, reset = torch.randn(2, length, 8, dtype=torch.float64), torch.zeros(2, length, dtype=torch.bool)
    for row, t in resets:
        reset[row, min(t, length - 1)] = True
    expected = pair_by_pair(mixer, x, reset)
    cut = min(cut, length)
    before, state = mixer(x[:, :cut], None, reset[:, :cut])
    after, state = mixer(x[:, cut:], state, reset[:, cut:])
    torch.testing.assert_close(torch.cat([before, after], 1), expected)
    if window is not None:
        assert [s.shape[1] for s in state] == [window] * 3
    if not reset.any():
        torch.testing.assert_close(mixer(x)[0], expected)
        y, state = [], mixer.initial_state(2)
        for t in range(length):
            y_t, state = mixer.step(x[:, t], state)
            y.append(y_t)
        torch.testing.assert_close(torch.stack(y, 1), expected)


def test_default_heads_have_64_channels_or_more():
    assert [AttentionMixer(dim).heads for dim in (8, 64, 384, 768, 1000, 1026)] == [1, 1, 6, 12, 10, 9]


def test_dropout_in_training_only():
    mixer, x = AttentionMixer(8, dropout=0.5), torch.randn(2, 9, 8)
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    mixer.eval()
    assert torch.equal(mixer(x)[0], mixer(x)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 5}, "heads must divide the width 16 into even parts, got heads=5"),
        ({"heads": 16}, "heads must divide the width 16 into even parts, got heads=16"),
        ({"heads": 0}, "got heads=0"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide the 4 heads, got kv_heads=3"),
        ({"window": 0}, "window must be at least 1 step, or none for all, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        AttentionMixer(8, 2.0, **options)
