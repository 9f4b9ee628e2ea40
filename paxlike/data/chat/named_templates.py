"""The chat templates that come with paxlike, in Jinja."""

NAMED_TEMPLATES = {
    # OpenAI's ChatML, as Qwen and many others use it.
    "chatml": """\
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # The layout of Llama 3: a header with the role, then the text without outer whitespace.
    "llama3": """\
{{- bos_token }}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}
{{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # For any vocabulary: the only special token is the one that ends a document.
    "plain": """\
{{- bos_token }}
{%- for message in messages %}
{{- '' if loop.first else '\\n\\n' }}
{{- message.role | capitalize ~ ':\\n' ~ message.content | trim }}
{{- eos_token if message.role == 'assistant' else '' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '\\n\\nAssistant:\\n' }}
{%- endif %}
""",
}
"""Name -> source."""
