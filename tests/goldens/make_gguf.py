"""Writes a golden model's safetensors as a GGUF file, the way llama.cpp's convert_hf_to_gguf.py does.

    pip install gguf==0.19.0 numpy safetensors
    python make_gguf.py llama-tied qwen3

Takes names of directories beside this file and writes `model.gguf` into each, with all tensors in F32: names and
metadata as llama.cpp knows them, and for the architecture `llama` the rows of the query and key projections
interleaved, as its RoPE rotates neighbouring pairs. No tokenizer: the goldens are token ids.
"""

import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}


def interleave(weight, heads):
    """Rows of each head from two halves to neighbouring pairs (LlamaModel.permute of convert_hf_to_gguf.py)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(rope, head_dim, theta):
    """The factor of each frequency under the llama3 scaling, which GGUF files hold as a tensor."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1.0 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_metadata(writer, config, rope, head_dim, theta):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config["bos_token_id"] is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    if config["eos_token_id"] is not None:
        writer.add_eos_token_id(config["eos_token_id"])


def convert(directory):
    config = json.loads((directory / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config["rope_theta"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    arch = ARCHITECTURES[config["architectures"][0]]

    writer = gguf.GGUFWriter(directory / "model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    write_metadata(writer, config, rope, head_dim, theta)
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim, theta))
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, weight in load_file(directory / "model.safetensors").items():
        if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.q_proj." in name:
            weight = interleave(weight, heads)
        if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.k_proj." in name:
            weight = interleave(weight, kv_heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, np.ascontiguousarray(weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        convert(Path(__file__).parent / name)
