//! Writes GGUF files for tests: metadata and tensors as given, however wrong they are.

/// A metadata value, as GGUF types it.
#[derive(Clone)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Text(&'static str),
    Texts(Vec<&'static str>),
    I32s(Vec<i32>),
}

/// A file under construction.
#[derive(Clone)]
pub(crate) struct GgufWriter {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) metadata: Vec<(String, Value)>,
    /// Name, sizes outermost first, ggml type, contents.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl GgufWriter {
    pub(crate) fn new(architecture: &'static str) -> Self {
        let metadata = vec![("general.architecture".to_owned(), Value::Text(architecture))];
        Self { version: 3, alignment: 32, metadata, tensors: Vec::new() }
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, contents: Vec<u8>) {
        self.tensors.retain(|(existing, ..)| existing != name);
        let shape = shape.iter().map(|&size| size as u64).collect();
        self.tensors.push((name.to_owned(), shape, kind, contents));
    }

    pub(crate) fn f32_tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.tensor(name, shape, 0, bytemuck::cast_slice(values).to_vec());
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for (name, shape, kind, contents) in &self.tensors {
            put_text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + contents.len()).next_multiple_of(self.alignment);
        }
        for (_, _, _, contents) in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(contents);
        }
        out
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U32(number) => {
            out.extend(4u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Value::F32(number) => {
            out.extend(6u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            put_text(out, text);
        }
        Value::Texts(texts) => {
            put_array(out, 8, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::I32s(numbers) => {
            put_array(out, 5, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}

fn put_array(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

/// Metadata and random F32 weights of a small Llama: hidden size 256, so that every quantised format fits.
pub(crate) fn small_llama() -> GgufWriter {
    let mut file = GgufWriter::new("llama");
    for (key, value) in [
        ("context_length", 512),
        ("embedding_length", 256),
        ("feed_forward_length", 512),
        ("block_count", 1),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 2),
        ("vocab_size", 96),
    ] {
        file.set(&format!("llama.{key}"), Value::U32(value));
    }
    file.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    file.set("llama.rope.freq_base", Value::F32(500_000.0));
    for (name, shape) in [
        ("token_embd.weight", &[96, 256][..]),
        ("blk.0.attn_q.weight", &[256, 256]),
        ("blk.0.attn_k.weight", &[64, 256]),
        ("blk.0.attn_v.weight", &[64, 256]),
        ("blk.0.attn_output.weight", &[256, 256]),
        ("blk.0.ffn_gate.weight", &[512, 256]),
        ("blk.0.ffn_up.weight", &[512, 256]),
        ("blk.0.ffn_down.weight", &[256, 512]),
        ("blk.0.attn_norm.weight", &[256]),
        ("blk.0.ffn_norm.weight", &[256]),
        ("output_norm.weight", &[256]),
    ] {
        let values = noise(name.len() as u32, shape.iter().product());
        file.f32_tensor(name, shape, &values);
    }
    file
}

/// Reproducible numbers in -1..1.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
