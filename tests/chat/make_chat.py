"""What transformers makes of conversations with chat templates: the reference for `tidbit run --chat`.

usage: make_chat.py OUT_DIR [--gguf SmolLM2-135M-Instruct.Q4_1.gguf]

Needs transformers 5.23 and jinja2; with --gguf also gguf and tokenizers (see tests/families/make_smollm2_golden.py).

TEMPLATES are written here in the style of published ones (ChatML, LLaMA 2, LLaMA 3, Gemma, Mistral, ...), and use what these use of Jinja.
OUT_DIR/chat.json: `cases`, each with `name`, `template`, `tokens`, `messages`, and the `text` that `apply_chat_template` renders with
`add_generation_prompt`, or the `error` that the template raises; with --gguf, the case `smollm2` has the `ids` of the text, too.
"""
import argparse, json, pathlib, sys
import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

CHATML_DEFAULT = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' or not loop.first or message.role == "user" %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ (message.content | trim) ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

# Blocks on lines of their own (trim_blocks, lstrip_blocks), thoughts taken out, Python's methods of strings and dictionaries.
THINKING = """{% macro turn(role, text) %}
<|{{ role }}|>
{{ text }}<|end|>
{% endmacro %}
{% for message in messages %}
  {% if message.role == 'assistant' and '</think>' in message.content %}
    {% set content = message.content.split('</think>')[-1].lstrip('\\n') %}
  {% else %}
    {% set content = message.content %}
  {% endif %}
  {% if message.content.startswith('!') %}
    {% continue %}
  {% endif %}
{{ turn(message.role.upper(), content) }}
  {% for key, value in message.items() if key != 'content' %}
{{ key }}={{ value | tojson }}
  {% endfor %}
{% endfor %}
{{ {'a': 1, 'b': [1.5, true, none, "<é'>"]} | tojson }}
{{ {'a': [1, 2], 'b': {}} | tojson(indent=2) }}
{% if add_generation_prompt is defined and add_generation_prompt %}
<|ASSISTANT|>{% generation %}{% endgeneration %}
{% endif %}
   trailing {{ unknown_name }}{{ messages | length }}{{ messages[-1].role.title() }}{{ '%s' if false else '' }}
"""

S, U, A = (lambda text: {"role": "system", "content": text}), (lambda text: {"role": "user", "content": text}), (lambda text: {"role": "assistant", "content": text})
CONVERSATIONS = [
    [U("Why is the sky blue?")],
    [S("You are terse."), U("  Why is the sky blue?\n")],
    [U("Hi"), A(" Hello! \n"), U("{{ messages }} {% raise %} <b>&'\"</b> caf\u00e9 \u4e2d\u6587 \U0001F642")],
    [S("Answer in French."), U("One"), A("<think>\nhm\n</think>\n\nUn"), U("!Two"), A("Deux"), U("Three\n\nlines\n")],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {"chatml": CHATML, "chatml-default": CHATML_DEFAULT, "llama-2": LLAMA2, "llama-3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL,
             "thinking": THINKING}


def case(name, template, tokens, messages):
    made = {"name": name, "template": template, "tokens": tokens, "messages": messages}
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, tools=None, documents=None, **tokens)
        return made | {"text": rendered[0]}
    except jinja2.exceptions.TemplateError as error:
        return made | {"error": str(error)}


def smollm2(path):
    import gguf
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "families"))
    from make_smollm2_golden import field, tokenizer
    reader = gguf.GGUFReader(path)
    tokens = field(reader, "tokenizer.ggml.tokens")
    named = {f"{short}_token": tokens[field(reader, f"tokenizer.ggml.{key}_token_id")] for short, key in
             [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] if f"tokenizer.ggml.{key}_token_id" in reader.fields}
    tok, template = tokenizer(reader), field(reader, "tokenizer.chat_template")
    cases = [case("smollm2", template, named, messages) for messages in CONVERSATIONS]
    return [made | {"ids": tok.encode(made["text"]).ids} for made in cases]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--gguf", type=pathlib.Path)
    a = ap.parse_args()
    cases = [case(name, template, TOKENS, messages) for name, template in TEMPLATES.items() for messages in CONVERSATIONS]
    if a.gguf:
        cases += smollm2(a.gguf)
    (a.out / "chat.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    print(len(cases), "cases,", sum("error" in made for made in cases), "errors")


if __name__ == "__main__":
    main()
