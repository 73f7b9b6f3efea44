"""What models of each family write when they call functions, word for word."""

from __future__ import annotations

from typing import Any, NamedTuple

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"type": ["string", "null"]},
        "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
    },
    "required": ["city"],
}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "get_weather": WEATHER,
    "get_time": {"type": "object", "properties": {}},
}
PARIS, TIME = ("get_weather", '{"city": "Paris"}'), ("get_time", "{}")


class Output(NamedTuple):
    family: str
    text: str
    content: str
    calls: tuple[tuple[str, str], ...]
    """Names and arguments."""
    reasoning: str = ""


_THINK = '<think>\nIs <tool_call>{"name": "get_time", "arguments": {}}</tool_call> needed? No.\n</think>\n\n'
_THOUGHT = 'Is <tool_call>{"name": "get_time", "arguments": {}}</tool_call> needed? No.'

OUTPUTS: tuple[Output, ...] = (
    Output(
        "hermes",
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>\n'
        '{"arguments": {}, "name": "get_time"}\n</tool_call>',
        "I look.", (PARIS, TIME),
    ),
    Output(
        "hermes", _THINK + '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich \\u00e9 🌦 }</tool_call>"}}\n</tool_call>',
        "", (("get_weather", '{"city": "Zürich \\u00e9 🌦 }</tool_call>"}'),), _THOUGHT,
    ),
    Output("hermes", "Not <tool_call>one</tool_call> <tool", "Not <tool_call>one</tool_call> <tool", ()),
    Output("hermes", '<tool_call>{"name": "get_time"}</tool_call>Done.', "Done.", (TIME,)),
    Output("hermes", '<tool_call>{"a": [1, "}"]} and</tool_call>', '<tool_call>{"a": [1, "}"]} and</tool_call>', ()),
    Output(
        "hermes", '<tool_call>{"type": "function", "function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}</tool_call>',
        "", (PARIS,),
    ),
    Output("hermes", 'Cut <tool_call>{"name": "get_weather", "arguments": {"city": "Pa', "Cut", (("get_weather", '{"city": "Pa'),)),
    Output("hermes", 'Cut <tool_call>{"name": "get_wea', 'Cut <tool_call>{"name": "get_wea', ()),
    Output(
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nPa\"ris\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        "", (("get_weather", '{"city": "Pa\\"ris", "days": 3}'),),
    ),
    Output(
        "qwen3_coder",
        'Two:\n<tool_call>\n<function=get_weather>\n<parameter=units>\nnull\n</parameter>\n<parameter=where>\n{"lat": 1.5}\n</parameter>\n'
        "<parameter=city>\n\nOn <b>two</b>\nlines\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n"
        "</function>",
        "Two:", (("get_weather", '{"units": null, "where": {"lat": 1.5}, "city": "\\nOn <b>two</b>\\nlines"}'), TIME),
    ),
    Output("llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", (PARIS,)),
    Output(
        "llama3_json", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "get_time", "parameters": {}}',
        "", (PARIS, TIME),
    ),
    Output("llama3_json", '{"name": "Paris", "parameters": {}}', '{"name": "Paris", "parameters": {}}', ()),
    Output("llama3_json", '{"answer": {"name": "get_time"}}', '{"answer": {"name": "get_time"}}', ()),
    Output("pythonic", '[get_weather(city="Paris"), get_time()]', "", (PARIS, TIME)),
    Output(
        "pythonic", "<|python_start|>[get_weather(city='Par)is', where={\"lat\": 1.5}, days=true)]<|python_end|>",
        "", (("get_weather", '{"city": "Par)is", "where": {"lat": 1.5}, "days": true}'),),
    ),
    Output("pythonic", "[1] is a (note), [get_timetable()]", "[1] is a (note), [get_timetable()]", ()),
    Output("pythonic", "[get_weather(open('x'))]", "[get_weather(open('x'))]", ()),
    Output("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "get_time", "arguments": {}}]', "", (PARIS, TIME)),
    Output("mistral_v11", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[CALL_ID]abc123def[ARGS]{}', "", (PARIS, TIME)),
    Output("mistral_v11", '[THINK]Is [TOOL_CALLS] needed?[/THINK]Yes.[TOOL_CALLS]get_time{}', "Yes.", (TIME,), "Is [TOOL_CALLS] needed?"),
    Output(
        "deepseek_v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "", (PARIS, TIME),
    ),
    Output(
        "deepseek_v31",
        "<think>Hm.</think>I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.", (PARIS, TIME), "Hm.",
    ),
    Output(
        "deepseek_v32",
        '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "", (("get_weather", '{"city": "Paris", "days": 3}'), TIME),
    ),
    Output(
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
        "</tool_call>\n<tool_call>get_time\n</tool_call>",
        "", (("get_weather", '{"city": "Paris", "days": 3}'), TIME),
    ),
    Output("glm47", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call><tool_call>get_time</tool_call>", "", (PARIS, TIME)),
    Output(
        "kimi_k2",
        "I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\"}<|tool_call_end|>"
        "<|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "I look.", (PARIS, TIME),
    ),
    Output(
        "harmony",
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "", (PARIS,), "I look.",
    ),
    Output(
        "harmony",
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>commentary<|message|>First: <|end|>"
        "<|start|>assistant to=functions.get_time<|channel|>commentary json<|message|>{}<|end|><|start|>assistant<|channel|>final"
        "<|message|>It is 9.<|return|>",
        "First:It is 9.", (TIME,), "Easy.",
    ),
    Output("harmony", "No channel at all", "No channel at all", ()),
    Output("internlm", 'Ok.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Paris"}}<|action_end|>\n', "Ok.", (PARIS,)),
    Output("granite", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "get_time", "arguments": {}}]', "", (PARIS, TIME)),
    Output("granite", '<function_call> {"name": "get_weather", "arguments": {"city": "Paris"}}', "", (PARIS,)),
    Output("phi4_mini_json", 'functools[{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", (PARIS,)),
    Output("phi4_mini_json", '<|tool_call|>[{"name": "get_time", "arguments": {}}]<|/tool_call|>', "", (TIME,)),
    Output("minimax", '<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n{"name": "get_time", "arguments": {}}\n</tool_calls>', "", (PARIS, TIME)),
    Output(
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n<invoke name="get_time">\n</invoke>\n'
        "</minimax:tool_call>",
        "", (PARIS, TIME),
    ),
    Output(
        "seed_oss",
        "<seed:think>Hm.</seed:think><seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
        "", (PARIS,), "Hm.",
    ),
    Output(
        "cohere_command",
        '<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}, '
        '{"tool_call_id": "1", "tool_name": "get_time", "parameters": {}}]<|END_ACTION|>',
        "", (PARIS, TIME), "Hm.",
    ),
    Output(
        "command_r", 'Action: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": {"city": "Paris"}\n    }\n]```',
        "", (PARIS,),
    ),
    Output("command_r", "Action: none, I think", "Action: none, I think", ()),
    Output("lfm2", '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>Soon.', "Soon.", (PARIS,)),
    Output("olmo3", '<function_calls>get_weather(city="Paris")\nget_time()</function_calls>', "", (PARIS, TIME)),
    Output("jamba", '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_calls>', "", (PARIS,)),
    Output(
        "gemma4",
        '<|channel>thought\nHm.<channel|>I look.<|tool_call>call:get_weather{city:<|"|>Pa"r}is,\n<b><|"|>,days:3,units:null,where:{lat:1.5}}<tool_call|>'
        "<|tool_call>call:get_time{}<tool_call|>",
        "I look.", (("get_weather", '{"city": "Pa\\"r}is,\\n<b>", "days": 3, "units": null, "where": {"lat": 1.5}}'), TIME), "Hm.",
    ),
    Output("gemma4", '<|tool_call>call:get_weather{"city": "Pa\\"ris", }<tool_call|>', "", (("get_weather", '{"city": "Pa\\"ris"}'),)),
    Output("gemma4", 'Cut <|tool_call>call:get_weather{city:<|"|>Par<|', "Cut", (("get_weather", '{"city": "Par'),)),
    Output("gemma4", "No <|tool_call>get_weather<tool_call|>", "No <|tool_call>get_weather<tool_call|>", ()),
    Output("functiongemma", "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>", "", (PARIS,)),
    Output(
        "step3",
        'I look.<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">\n'
        '<steptml:parameter name="city">Paris</steptml:parameter>\n<steptml:parameter name="days">3</steptml:parameter>\n</steptml:invoke>'
        '<｜tool_call_end｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_time"></steptml:invoke><｜tool_call_end｜>\n'
        "<｜tool_calls_end｜>",
        "I look.", (("get_weather", '{"city": "Paris", "days": 3}'), TIME),
    ),
    Output("xlam", '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "get_time", "arguments": {}}]', "", (PARIS, TIME)),
    Output("xlam", 'I look.\n```json\n[{"name": "get_weather", "arguments": {"city": "Paris"}}]\n```', "I look.", (PARIS,)),
    Output("xlam", '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]', "", (TIME,)),
    Output("xlam", '[{"name": "Paris", "arguments": {}}]', '[{"name": "Paris", "arguments": {}}]', ()),
    Output(
        "hunyuan_a13b",
        '<think>\nHm.\n</think>\n<answer>\n<tool_calls>\n[\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n]\n</tool_calls>\n</answer>',
        "", (PARIS,), "Hm.",
    ),
    Output("hunyuan_a13b", "<think>\n\n</think>\n<answer>\nIt is 9.\n</answer>", "It is 9.", ()),
    Output("hunyuan_a13b", "<answer>It is <answer> 9.</answer>\n", "It is <answer> 9.", ()),
)  # fmt: skip
