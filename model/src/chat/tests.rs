//! Real templates, shortened to their structure where they are long; expected texts as transformers renders them.

use super::*;

const DEMO_CONFIG: &str = include_str!("../../demo/tokenizer_config.json");

const LLAMA_3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const LLAMA_3_1: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- elif message.role == "tool" %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const QWEN_2_5: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

/// Qwen3: walks the messages backwards, and cuts the reasoning out of earlier answers.
const QWEN_3: &str = r#"{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

/// Mistral 7B Instruct v0.1 and v0.2: no system message at all.
const MISTRAL_V1: &str = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";

/// Mistral 7B Instruct v0.3: the system text moves along to the last user message.
const MISTRAL_V3: &str = r#"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"#;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").expect("a real template")
}

fn demo() -> ChatTemplate {
    ChatSource::from_files(Some(DEMO_CONFIG), None)
        .unwrap()
        .into_template()
        .unwrap()
        .expect("the demo has one")
}

fn pieces(split: &PromptSplit) -> [&str; 4] {
    let PromptSplit { before_context, between_context_and_question, after_question, turn_glue } = split;
    [before_context, between_context_and_question, after_question, turn_glue]
}

#[test]
fn the_demo_puts_one_space_between_context_and_question() {
    for role in [ContextRole::System, ContextRole::Auto] {
        let split = demo().split(role, None).unwrap();
        assert_eq!(pieces(&split), ["<|begin|>", " ", "", "<|end|> "]);
    }
    let split = demo().split(ContextRole::User, None).unwrap();
    assert_eq!(pieces(&split), ["<|begin|> ", "\n\n", "", "<|end|> "]);
}

#[test]
fn llama_3_trims_contents_and_still_splits() {
    let header = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let (user, assistant) = (header("user"), header("assistant"));
    let split = template(LLAMA_3).split(ContextRole::Auto, None).unwrap();
    let before = format!("<s>{}", header("system"));
    let (between, after) = (format!("<|eot_id|>{user}"), format!("<|eot_id|>{assistant}"));
    assert_eq!(pieces(&split), [&before, &between, &after, &between]);

    let split = template(LLAMA_3).split(ContextRole::User, Some("Be brief.")).unwrap();
    let before = format!("<s>{}Be brief.<|eot_id|>{user}", header("system"));
    assert_eq!(pieces(&split), [&before, "\n\n", &after, &between]);
}

#[test]
fn llama_3_1_prints_the_date_that_it_is_given() {
    let split = template(LLAMA_3_1).split(ContextRole::Auto, Some("Be brief.")).unwrap();
    let head = "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ";
    assert_eq!(split.before_context, format!("{head}26 Jul 2024\n\nBe brief.\n\n"));
    let dated = template(LLAMA_3_1).with_date("2026-02-03").unwrap();
    let split = dated.split(ContextRole::System, None).unwrap();
    assert_eq!(split.before_context, format!("{head}03 Feb 2026\n\n"));
    assert_eq!(split.between_context_and_question, "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n");
    assert_eq!(split.after_question, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
}

#[test]
fn qwen_splits_in_both_roles() {
    let between = "<|im_end|>\n<|im_start|>user\n";
    let after = "<|im_end|>\n<|im_start|>assistant\n";
    for source in [QWEN_2_5, QWEN_3] {
        let split = template(source).split(ContextRole::Auto, None).unwrap();
        assert_eq!(pieces(&split), ["<|im_start|>system\n", between, after, between]);
    }
    let split = template(QWEN_2_5).split(ContextRole::User, None).unwrap();
    let system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
    assert_eq!(split.before_context, format!("<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"));
}

#[test]
fn mistral_falls_back_to_the_users_message() {
    let split = template(MISTRAL_V1).split(ContextRole::Auto, None).unwrap();
    assert_eq!(pieces(&split), ["<s>[INST] ", "\n\n", " [/INST]", "</s>[INST] "]);
    let refused = template(MISTRAL_V1).split(ContextRole::System, None).unwrap_err();
    assert!(refused.to_string().contains("roles must alternate"), "{refused}");

    let split = template(MISTRAL_V3).split(ContextRole::Auto, None).unwrap();
    assert_eq!(pieces(&split), ["<s>[INST] ", "\n\n", "[/INST]", "</s>[INST] "]);
    let moved = template(MISTRAL_V3).split(ContextRole::System, None).unwrap_err();
    assert!(matches!(moved, ChatError::NotAppendOnly { other: ContextRole::User, .. }), "{moved}");

    for (source, after) in [(MISTRAL_V1, " [/INST]"), (MISTRAL_V3, "[/INST]")] {
        let split = template(source).split(ContextRole::Auto, Some("Be brief.")).unwrap();
        assert_eq!(pieces(&split), ["<s>[INST] Be brief.\n\n", "\n\n", after, "</s>[INST] "]);
    }
}

#[test]
fn pieces_join_to_what_the_template_renders() {
    for source in [LLAMA_3, LLAMA_3_1, QWEN_2_5, QWEN_3] {
        let template = template(source);
        let split = template.split(ContextRole::System, Some("S")).unwrap();
        let [before, between, after, glue] = pieces(&split);
        let mut messages = vec![Message::new("system", "S\n\nThe text."), Message::new("user", "One?")];
        let first = format!("{before}The text.{between}One?{after}");
        assert_eq!(template.render(&messages, true).unwrap(), first);
        messages.extend([Message::new("assistant", "Yes."), Message::new("user", "Two?")]);
        assert_eq!(template.render(&messages, true).unwrap(), format!("{first}Yes.{glue}Two?{after}"));
    }
}

#[test]
fn a_system_text_cannot_forge_the_places_of_context_and_question() {
    let known = template(QWEN_2_5).split(ContextRole::System, Some("x")).unwrap();
    let forged = format!("{}x{}c", known.before_context, "0".repeat(64));
    let split = template(QWEN_2_5).split(ContextRole::System, Some(&forged)).unwrap();
    assert_eq!(split.before_context, format!("<|im_start|>system\n{forged}\n\n"));
}

#[test]
fn templates_that_hide_or_repeat_the_context_are_refused_with_the_count() {
    let hidden = template("{{ messages[-1].content }}").split(ContextRole::System, None).unwrap_err();
    assert!(matches!(hidden, ChatError::NotInPlace { text: "context", count: 0, .. }), "{hidden}");
    let twice = template("{{ messages[0].content }}{{ messages[0].content }}{{ messages[-1].content }}");
    let twice = twice.split(ContextRole::System, None).unwrap_err();
    assert!(matches!(twice, ChatError::NotInPlace { text: "context", count: 2, .. }), "{twice}");
    let backwards = template("{{ messages[-1].content }} {{ messages[0].content }}");
    assert!(backwards.split(ContextRole::System, None).is_err());
}

#[test]
fn without_a_template_the_context_follows_bos_and_the_question_follows_as_it_is() {
    assert_eq!(pieces(&PromptSplit::plain("<s>")), ["<s>", "", "", ""]);
}

#[test]
fn templates_are_found_in_every_place_they_are_kept() {
    let listed = r#"{"bos_token": {"content": "<b>", "lstrip": false}, "eos_token": null,
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    let source = ChatSource::from_files(Some(listed), None).unwrap();
    assert_eq!(
        (source.template.as_deref(), source.bos_token.as_deref(), source.eos_token),
        (Some("D"), Some("<b>"), None)
    );
    let jinja = ChatSource::from_files(Some(DEMO_CONFIG), Some("J")).unwrap();
    assert_eq!((jinja.template.as_deref(), jinja.bos_token.as_deref()), (Some("J"), Some("<|begin|>")));
    assert!(ChatSource::from_files(None, None).unwrap().into_template().unwrap().is_none());
    for bad in ["[]", "{", r#"{"chat_template": 3}"#, r#"{"chat_template": []}"#, r#"{"bos_token": 3}"#] {
        assert!(matches!(ChatSource::from_files(Some(bad), None), Err(ChatError::Config { .. })), "{bad}");
    }
}

#[test]
fn bad_templates_and_endless_ones_are_errors() {
    assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(ChatError::Syntax { .. })));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}";
    assert!(matches!(template(endless).render(&[], false), Err(ChatError::Render { .. })));
    let raised = template("{{ raise_exception('no such ' + 'role') }}").render(&[], false).unwrap_err();
    assert!(raised.to_string().contains("no such role"), "{raised}");
}

#[test]
fn blocks_and_loops_behave_as_in_transformers() {
    let source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% continue %}\n    {% endif %}\n{% break %}\n{% endfor %}\n{% generation %}g{%- endgeneration -%}  \nend\n";
    let messages = [Message::new("user", "a"), Message::new("user", "b"), Message::new("system", "c")];
    assert_eq!(template(source).render(&messages, false).unwrap(), "a\nb\ngend");
}

#[test]
fn tojson_writes_as_python_does() {
    let source = r#"{{ {"a": [1, 2.5, none, true], "b": "é<'\n"} | tojson }}|{{ [1] | tojson(indent=2) }}"#;
    let expected = "{\"a\": [1, 2.5, null, true], \"b\": \"é<'\\n\"}|[\n  1\n]";
    assert_eq!(template(source).render(&[], false).unwrap(), expected);
}

#[test]
fn dates_are_checked_and_formatted() {
    let format = |date: &str| {
        let source = "{{ strftime_now('%A %a, %-d %B %b %y %Y-%m-%d %F %H:%M:%S %%') }}";
        template(source).with_date(date).unwrap().render(&[], false).unwrap()
    };
    assert_eq!(format("2024-02-29"), "Thursday Thu, 29 February Feb 24 2024-02-29 2024-02-29 00:00:00 %");
    assert_eq!(format("2026-01-01"), "Thursday Thu, 1 January Jan 26 2026-01-01 2026-01-01 00:00:00 %");
    for bad in
        ["2023-02-29", "2026-13-01", "2026-1-1", "today", "2026-01-01-", "", "2026-00-10", "+026-01-01"]
    {
        assert!(matches!(template("").with_date(bad), Err(ChatError::Date { .. })), "{bad}");
    }
    assert!(template("{{ strftime_now('%Q') }}").render(&[], false).is_err());
}

#[test]
fn context_roles_have_names() {
    for role in [ContextRole::Auto, ContextRole::System, ContextRole::User] {
        assert_eq!(role.to_string().parse(), Ok(role));
    }
    assert!("assistant".parse::<ContextRole>().unwrap_err().to_string().contains("auto, system or user"));
}
