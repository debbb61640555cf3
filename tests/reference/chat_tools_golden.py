"""Conversations with tool calls, rendered by transformers: the order of keys, arguments as object and as JSON text.

    pip install transformers jinja2 && python tests/reference/chat_tools_golden.py > model/tests/golden/chat_tools.json

Arguments that APIs give as JSON text are parsed first, as transformers' documentation asks of its callers.
"""

import json

from transformers.utils.chat_template_utils import render_jinja_template

# Three ways in which published templates write a call.
TEMPLATES = {
    "tags": "{%- for m in messages %}\n    {%- if m.role == 'tool' %}\n        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}\n    {%- else %}\n        {{- '<|im_start|>' + m.role }}\n        {%- if m.content %}\n            {{- '\\n' + m.content }}\n        {%- endif %}\n        {%- for call in m.tool_calls %}\n            {%- if call.function is defined %}\n                {%- set call = call.function %}\n            {%- endif %}\n            {{- '\\n<tool_call>\\n{\"name\": \"' + call.name + '\", \"arguments\": ' }}\n            {{- call.arguments | tojson }}\n            {{- '}\\n</tool_call>' }}\n        {%- endfor %}\n        {{- '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "headers": "{%- for m in messages %}\n    {%- if 'tool_calls' in m %}\n        {%- set call = m.tool_calls[0].function %}\n        {{- '<|im_start|>assistant\\n{\"name\": \"' + call.name + '\", \"parameters\": ' + (call.arguments | tojson) + '}<|im_end|>\\n' }}\n    {%- else %}\n        {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "items": "{%- for m in messages %}\n    {{- '<|im_start|>' + m.role + '\\n' + m.content }}\n    {%- for call in m.tool_calls or [] %}\n        {{- '<' + call.function.name }}\n        {%- for key, value in call.function.arguments | items %}\n            {{- ' ' + key + '=' + (value | tojson) }}\n        {%- endfor %}\n        {{- '>' }}\n    {%- endfor %}\n    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
}

ARGUMENTS = {"zeta": "é \"quoted\"", "alpha": [1, 2.5, None, True], "nested": {"b": {"y": 1, "a": 2}, "a": "<x> & 'y'"}}

MESSAGES = [
    {"role": "system", "content": "Use the tools."},
    {"role": "user", "content": "where is it?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call-1", "type": "function", "function": {"name": "find", "arguments": ARGUMENTS}}],
    },
    {"role": "tool", "tool_call_id": "call-1", "name": "find", "content": '{"found": true}'},
    {"role": "assistant", "content": "It is here."},
    {"role": "user", "content": "and now?"},
]


def render(template, messages, add_generation_prompt):
    rendered = render_jinja_template([messages], chat_template=template, add_generation_prompt=add_generation_prompt)
    return rendered[0][0]


if __name__ == "__main__":
    as_text = json.loads(json.dumps(MESSAGES))
    as_text[2]["tool_calls"][0]["function"]["arguments"] = json.dumps(ARGUMENTS, ensure_ascii=False)
    cases = [
        {"name": name, "template": template, "upto": n, "open": open_, "text": render(template, MESSAGES[:n], open_)}
        for name, template in TEMPLATES.items()
        for n, open_ in [(2, True), (3, False), (4, True), (5, False), (6, True)]
    ]
    print(json.dumps({"messages": MESSAGES, "messages_as_text": as_text, "cases": cases}, indent=1, ensure_ascii=False))
