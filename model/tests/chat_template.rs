//! Published chat templates render as transformers renders them; hostile ones end with an error, soon.

#![allow(clippy::unwrap_used, reason = "tests")]

use limbeck_artifact::dataset::Message;
use limbeck_model::chat_template::ChatTemplate;

fn say(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

fn render(template: &str) -> Result<String, String> {
    let template = ChatTemplate::new(template, Some("<s>".into()), Some("</s>".into())).map_err(|e| e.to_string())?;
    template.render(&[say("system", " Be brief. "), say("user", "Hi")], true).map_err(|e| e.to_string())
}

#[track_caller]
fn check(template: &str, expected: &str) {
    assert_eq!(render(template).unwrap(), expected);
}

#[test]
fn blocks_leave_no_blank_lines() {
    let template =
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\nend\n";
    check(template, "Hi\nend");
}

#[test]
fn what_published_templates_use() {
    check("{{ bos_token }}{{ messages[0]['content'] | trim }}{{ eos_token }}", "<s>Be brief.</s>");
    check("{{ messages[0].content.strip() }}|{{ messages[1]['content'].upper() }}", "Be brief.|HI");
    check("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2");
    check("{% if messages[0]['content'].startswith(' Be') %}yes{% endif %}", "yes");
    check("{{ 'a,b'.split(',')[-1] }}{{ messages[1:] | length }}", "b1");
    check("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user");
    check("{% macro say(m) %}[{{ m.role }}]{% endmacro %}{{ say(messages[0]) }}", "[system]");
    check("{% if tools %}t{% elif strftime_now is defined %}d{% else %}n{% endif %}", "n");
    check("{% generation %}{{ messages[1].content }}{%- endgeneration %}", "Hi");
    check("{{ {'b': [1, 2.5, none, true], 'a': '<é\"'} | tojson }}", r#"{"a": "<é\"", "b": [1, 2.5, null, true]}"#);
    check(
        "{% if add_generation_prompt and messages|selectattr('role', 'equalto', 'user')|list|length == 1 %}x{% endif %}",
        "x",
    );
}

#[test]
fn a_template_may_refuse() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(error.contains("roles must alternate"), "{error}");
}

#[test]
fn hostile_templates_end_soon() {
    for template in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in range(50000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 1000 }}{% endfor %}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}\
         {% set ns.x = y %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% extends 'x' %}",
        "{% import 'os' as os %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{% for",
    ] {
        let text = render(template);
        assert!(text.as_ref().is_err() || text.as_ref().is_ok_and(String::is_empty), "{template}: {text:?}");
    }
    assert!(ChatTemplate::new(&"x".repeat((1 << 20) + 1), None, None).is_err());
}
