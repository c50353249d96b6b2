//! A checkpoint whose tokenizer or chat template is broken: told to those who need it, and to nobody else.

use std::path::Path;

use stellate_actors::{
    AskOptions, ContextSource, KvFormat, Layout, Model, ModelOptions, ModelSource, Node, QueryInput,
};
use stellate_tests::small_node;

/// The demo model's files in `dir`, some of them replaced.
async fn node(dir: &Path, replaced: &[(&str, &str)]) -> anyhow::Result<Node> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/demo");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(demo.join(file), dir.join(file))?;
    }
    for (file, text) in replaced {
        std::fs::write(dir.join(file), text)?;
    }
    let model = Model::load(&ModelSource::from(dir), &ModelOptions::default(), &mut |_| {})?;
    small_node(&model, 1, KvFormat::F32).await
}

async fn encode_error(node: &Node, source: ContextSource) -> String {
    node.encode(source, Layout::star(64, 64)).await.map(|_| ()).unwrap_err().to_string()
}

async fn answers_ids(node: &Node) -> anyhow::Result<()> {
    let context = node.encode(ContextSource::Ids(vec![0, 403, 286]), Layout::star(64, 64)).await?;
    let options = AskOptions { max_tokens: 2, ignore_eos: true, ..AskOptions::default() };
    let report = context.session().await?.ask(QueryInput::Ids(vec![414]), options).finish().await?;
    assert_eq!(report.ids.len(), 2);
    Ok(())
}

#[tokio::test]
async fn ids_need_no_tokenizer_and_words_are_told_what_is_wrong_with_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let node = node(dir.path(), &[("tokenizer.json", "{\"model\": 7")]).await?;
    answers_ids(&node).await?;
    let text = encode_error(&node, ContextSource::Text("words".into())).await;
    assert!(text.contains("tokenizer cannot be used") && text.contains("token ids"), "{text}");
    Ok(())
}

#[tokio::test]
async fn raw_text_needs_no_template_and_documents_are_told_what_is_wrong_with_it() -> anyhow::Result<()> {
    for template in ["{% for m in messages %}", "always the same"] {
        let dir = tempfile::tempdir()?;
        let node = node(dir.path(), &[("chat_template.jinja", template)]).await?;
        answers_ids(&node).await?;
        node.encode(ContextSource::Text("words".into()), Layout::star(64, 64)).await?;
        let text = encode_error(&node, ContextSource::Document("words".into())).await;
        assert!(text.contains("chat template cannot be used") && text.contains("--raw"), "{text}");
    }
    Ok(())
}
