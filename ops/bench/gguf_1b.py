"""The weights of `llama_1b.py` as GGUF files, every matrix in one format: q8_0 or q4_k. Norms are f32.

q8_0 blocks are made by the `gguf` package. It has no q4_k quantiser, so that is here: the plain one, without llama.cpp's search
for better scales, since what is compared is speed and the weights are random.
"""

from pathlib import Path

import numpy as np

import llama_1b as shape

FORMATS = ("q8_0", "q4_k")
QK_K = 256
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    """llama.cpp's name of a tensor in the Hugging Face naming."""
    name = name.removeprefix("model.").removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{PARTS[part]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[name]


def interleaved(rows, heads):
    """Query and key rows as llama.cpp has them: the halves of each head, which rotate together, in turns."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def rope_factors():
    """What llama3's scaling divides each frequency by (transformers, `_compute_llama3_parameters`)."""
    scaling = shape.ROPE_SCALING
    steps = np.arange(0, shape.HEAD_DIM, 2, dtype=np.float64) / shape.HEAD_DIM
    lengths = 2 * np.pi * shape.ROPE_THETA**steps
    turns = scaling["original_max_position_embeddings"] / lengths
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def q4_k(values):
    """Blocks of ggml's q4_k, `[rows, bytes]` of `[rows, columns]`: 256 numbers as 8 runs of 32, each with a 6-bit scale and a
    6-bit minimum of the block's two f16 (ggml-quants.c, `quantize_row_q4_K_ref`)."""
    rows = values.shape[0]
    runs = values.reshape(-1, QK_K // 32, 32)
    lowest = np.minimum(runs.min(2), 0)
    scales, minima = (runs.max(2) - lowest) / 15, -lowest
    d, dmin = (part.max(1, keepdims=True).astype(np.float32) / 63 for part in (scales, minima))
    d, dmin = (part.astype(np.float16).astype(np.float32) for part in (d, dmin))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale_codes = np.clip(np.nan_to_num(np.rint(scales / d)), 0, 63).astype(np.uint8)
        min_codes = np.clip(np.nan_to_num(np.rint(minima / dmin)), 0, 63).astype(np.uint8)
        step, floor = (d * scale_codes)[:, :, None], (dmin * min_codes)[:, :, None]
        codes = np.clip(np.nan_to_num(np.rint((runs + floor) / step)), 0, 15).astype(np.uint8)
    low = np.concatenate([scale_codes[:, :4], min_codes[:, :4]], 1)
    high = np.concatenate([scale_codes[:, 4:] >> 4, min_codes[:, 4:] >> 4], 1)
    last = (scale_codes[:, 4:] & 15) | ((min_codes[:, 4:] & 15) << 4)
    packed = np.concatenate([low | (high << 6), last], 1)
    pairs = codes.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, QK_K // 2)
    heads = np.concatenate([d, dmin], 1).astype("<f2").view(np.uint8)
    return np.concatenate([heads, packed, nibbles], 1).reshape(rows, -1)


def quantise(values, kind, gguf):
    """Rows of f32 in the given format, as bytes."""
    if kind == "q8_0":
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    return q4_k(values)


def tensor(index, name, dims, deviation, seed, kind, gguf):
    """One tensor as the file has it."""
    heads = {"q_proj": shape.HEADS, "k_proj": shape.KV_HEADS}.get(name.split(".")[-2])
    parts = []
    for bits in shape.chunks(index, dims, deviation, seed):
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        if len(dims) == 1:
            return values
        # A projection of queries or keys is one chunk: its heads are whole.
        parts.append(quantise(interleaved(values, heads) if heads else values, kind, gguf))
    return np.concatenate(parts)


def write(path, kind, seed, say):
    """Writes the file unless it is there."""
    import gguf

    path = Path(path)
    if path.exists():
        return
    say(f"writing random weights to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    writer = gguf.GGUFWriter(whole, "llama")
    writer.add_name(f"Llama-3.2-1B's shape, random weights, seed {seed}")
    writer.add_vocab_size(shape.VOCAB)
    writer.add_context_length(shape.MAX_POSITIONS)
    writer.add_embedding_length(shape.HIDDEN)
    writer.add_block_count(shape.LAYERS)
    writer.add_feed_forward_length(shape.INTERMEDIATE)
    writer.add_head_count(shape.HEADS)
    writer.add_head_count_kv(shape.KV_HEADS)
    writer.add_key_length(shape.HEAD_DIM)
    writer.add_value_length(shape.HEAD_DIM)
    writer.add_layer_norm_rms_eps(shape.NORM_EPS)
    writer.add_rope_freq_base(shape.ROPE_THETA)
    writer.add_rope_dimension_count(shape.HEAD_DIM)
    # Both engines are fed ids and need no words.
    writer.add_tokenizer_model("no_vocab")
    types = gguf.GGMLQuantizationType
    matrix = {"q8_0": types.Q8_0, "q4_k": types.Q4_K}[kind]
    writer.add_file_type({"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_k": gguf.LlamaFileType.MOSTLY_Q4_K_S}[kind])
    factors = rope_factors()
    writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for name, dims, _ in shape.tensors():
        if len(dims) == 1:
            writer.add_tensor_info(gguf_name(name), dims, np.dtype(np.float32), 4 * dims[0])
        else:
            stored = gguf.quants.quant_shape_to_byte_shape(dims, matrix)
            writer.add_tensor_info(gguf_name(name), stored, np.dtype(np.uint8), int(np.prod(stored)), matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(factors)
    for index, (name, dims, deviation) in enumerate(shape.tensors()):
        writer.write_tensor_data(tensor(index, name, dims, deviation, seed, kind, gguf))
    writer.close()
    # Under its name only when it is whole.
    whole.rename(path)
