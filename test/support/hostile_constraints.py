"""Constraints that strangers may send: (name, field of `SamplingParams`, text).

Nothing of this may end, hang or fill the process that reads it. Grammars are in Lark or GBNF.
"""

from __future__ import annotations

import json
import re

# fmt: off
Attack = tuple[str, str, str]
FIELDS = {"regex": "regular_constraint", "grammar": "guided_grammar", "json": "guided_json"}
DEPTHS = (30, 100, 400, 1_000, 5_000, 30_000)
SIZE = 65_000
found: list[Attack] = []


def add(name: str, kind: str, text: object) -> None:
    found.append((name, FIELDS[kind], text if isinstance(text, str) else json.dumps(text)))


def _nest(open_: str, close: str, depth: int, inner: str = "a") -> str:
    return open_ * depth + inner + close * depth


def _schema_nest(depth: int, form: str) -> str:
    """Text, not json.dumps: that recurses itself."""
    begin, end = {
        "object": ('{"type":"object","required":["a"],"additionalProperties":false,"properties":{"a":', "}}"),
        "array": ('{"type":"array","items":', "}"),
        "anyOf": ('{"anyOf":[{"type":"null"},', "]}"),
        "allOf": ('{"allOf":[', "]}"),
        "anyOf_two": ('{"anyOf":[{"type":"array","items":{"type":"integer"}},', "]}"),
        "prefixItems": ('{"type":"array","prefixItems":[', "]}"),
        "additional": ('{"type":"object","additionalProperties":', "}"),
        "const": ('{"const":', "}"),
        "not": ('{"not":', "}"),
    }[form]
    if form == "const":
        return '{"const":' + "[" * depth + "]" * depth + "}"
    return begin * depth + '{"type":"integer"}' + end * depth




def nested() -> None:
    for depth in DEPTHS:
        add(f"regex parentheses {depth}", "regex", _nest("(", ")", depth))
        add(f"regex parentheses starred {depth}", "regex", _nest("(", ")*", depth))
        add(f"regex optional nest {depth}", "regex", _nest("(a", ")?", depth, "b"))
        add(f"regex groups unclosed {depth}", "regex", "(" * depth)
        add(f"regex alternation nest {depth}", "regex", _nest("(a|b", ")", depth, "c"))
        add(f"regex class nest {depth}", "regex", _nest("[a", "]", depth, "b"))
        add(f"lark parentheses {depth}", "grammar", "start: " + _nest("(", ")", depth, '"a"'))
        add(f"lark brackets {depth}", "grammar", "start: " + _nest("[", "]", depth, '"a"'))
        add(f"lark starred {depth}", "grammar", "start: " + _nest("(", ")*", depth, '"a"'))
        add(f"lark rules through parentheses {depth}", "grammar", "start: " + _nest('("x" ', ")", depth, "r") + '\nr: "a" r | "b"')
        add(f"lark terminal parentheses {depth}", "grammar", "start: A\nA: " + _nest("(", ")", depth, '"a"'))
        add(f"lark regex parentheses {depth}", "grammar", "start: /" + _nest("(", ")", depth) + "/")
        add(f"lark rule chain {depth}", "grammar", "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(depth)) + f'\nr{depth}: "b"')
        add(f"lark terminal chain {depth}", "grammar", "start: T0\n" + "\n".join(f'T{i}: "a" T{i + 1}' for i in range(depth)) + f'\nT{depth}: "b"')
        add(f"lark terminal chain doubled {depth}", "grammar", "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(depth)) + f'\nT{depth}: "b"')
        add(f"lark template nest {depth}", "grammar", "start: " + _nest("a{", "}", depth, "b") + '\na{x}: x\nb: "b"')
        add(f"gbnf parentheses {depth}", "grammar", "root ::= " + _nest("(", ")", depth, '"a"'))
        add(f"gbnf parentheses plus {depth}", "grammar", "root ::= " + _nest("(", ")+", depth, '"a"'))
        add(f"gbnf rule chain {depth}", "grammar", "root ::= r0\n" + "\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(depth)) + f'\nr{depth} ::= "b"\n')
        for form in ("object", "array", "anyOf", "allOf", "anyOf_two", "prefixItems", "additional", "const", "not"):
            add(f"json nested {form} {depth}", "json", _schema_nest(depth, form))
        add(f"json unknown key nest {depth}", "json", '{"type":"integer","description":' + "[" * depth + "]" * depth + "}")
        add(f"json unclosed {depth}", "json", "[" * depth)
        add(f"json enum nest {depth}", "json", '{"enum":[' + "[" * depth + "]" * depth + "]}")
        add(f"json ref chain {depth}", "json", {"$ref": "#/$defs/d0", "$defs": {**{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(depth)}, f"d{depth}": {"type": "integer"}}})
        add(f"lark %json nest {depth}", "grammar", "start: %json " + _schema_nest(depth, "array"))
        add(f"lark grammar list nest {depth}", "grammar", '{"grammars":' + "[" * depth + "]" * depth + "}")


def repeated() -> None:
    # Counted repetition
    for text in (
        "(a{1,1000}){1,1000}", "((a{1,100}){1,100}){1,100}", "(((a{1,30}){1,30}){1,30}){1,30}", "a{1000000000}", "a{0,1000000000}",
        "(ab|cd){1000000}", "(a{0,60000}b){0,60000}", "(a|b|ab){1,5000}c", ".{0,100000}", r"\w{1,10000}", r"(\p{L}{1,500}){1,500}",
        "(.*a){20}", "(.*a.{20})", "(.|a)*a.{16}", "(.|a)*a.{24}", "[ab]*a[ab]{18}", r"(?s:.*)a(?s:.{100})b", "((a?){100}a{100})", "(a?){30000}a{30000}", "(a*)*b", "((a*)*)*",
        "(a|a)*b", "((a+)+)+$", "a{5,3}", "a{99999999999999999999}", "x*" * 5000, "(x*y?)" * 5000, "(x|y|)" * 10000,
        "|".join(f"{i:x}" * 3 for i in range(4000)), "(" + "|".join(f"w{i}" for i in range(8000)) + "){1,50}",
        "(.{1,50}x){1,50}(.{1,50}y){1,50}", ".*(" + "|".join(f"k{i}" for i in range(3000)) + ").*", "(?i)" + "straße" * 2000,
    ):  # fmt: skip
        add(f"regex {text[:40]!r}", "regex", text)
    for count in ("1000", "100000", "1000000000", "2147483647", "99999999999", "0", "-1"):
        add(f"lark rule repeated {count}", "grammar", f'start: r{{{count}}}\nr: "a" | "b" r')
        add(f"lark rule repeated 0..{count}", "grammar", f'start: r{{0,{count}}}\nr: "a" | "b" r')
        add(f"lark tilde {count}", "grammar", f'start: r~{count}\nr: "a" | "b" r')
        add(f"lark terminal repeated {count}", "grammar", f'start: A\nA: ("a"|"b"){{1,{count}}}')
        add(f"gbnf repeated {count}", "grammar", f'root ::= ("a" | "b" root){{1,{count}}}')
    add("lark nested repeats", "grammar", "start: " + _nest("(", "){1,100}", 6, 'r') + '\nr: "a" | "b" r')
    add("lark nested terminal repeats", "grammar", "start: A\nA: " + _nest("(", "){1,100}", 6, '"a"'))
    add("lark doubling rules", "grammar", "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"')
    add("lark doubling rules optional", "grammar", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}? r{i + 1}" for i in range(200)) + '\nr200: "a"')
    add("lark doubling terminals", "grammar", "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"')
    add("lark doubling terminals optional", "grammar", "start: T0\n" + "\n".join(f"T{i}: (T{i + 1} | T{i + 1} T{i + 1})" for i in range(25)) + '\nT25: "a"')
    add("gbnf doubling", "grammar", "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "a"\n')


def odd_characters() -> None:
    # Unicode, special syntax, odd characters
    for text in (
        r"\p{L}+", r"\p{Greek}*\p{Han}*", r"[^\x00-\x7f]{1,300}", r"\P{Any}", r"[^\u0000-\U0010FFFF]", r"(?i)[k-ſ]{1,100}", r"\X+", r"\p{Nope}",
        "(?=a)b", "(?!a)b.*", "(?<=a)b", "(?<!a)b", r"(a)\1", r"(?P<n>a)(?P=n)", "(?>a)", "^a$", r"\ba\b", r"\Aa\z", "a\x00b", "\x00" * 1000, "a\nb", "(?#c)a", "(?x) a b # c",
        "(?-u:\\xff)+", r"\xff", r"\x{110000}", r"\ud800", "é" * 3000, "\U0001F600{1,100}", "[", "(", "*", "a**", "{", "a{", "\\", "", "()", "(|)", "[]", "[^]", "[a-", "[z-a]", "(?", "(?P<", "$^", "a^b", "x$y", "[&&]", "[a&&b]", "[a--a]", "[^\\s\\S]", "[a&&b]*",
        "[a&&b]|c", "a~b", "~(a)", "a&b", "(?R)", "(?0)", "\\Q", "\\p{", "\\x{", "\\u", "/", "//", "\\/", "a/i",
    ):  # fmt: skip
        add(f"regex {text[:30]!r}", "regex", text)
    add("regex surrogate", "regex", "a\ud800b")
    add("grammar surrogate", "grammar", 'start: "a\ud800b"')
    add("gbnf surrogate", "grammar", 'root ::= "a\ud800b"')
    add("json surrogate raw", "json", '{"const":"\ud800"}')
    add("json surrogate escaped", "json", '{"const":"\\ud800"}')
    add("json surrogate key", "json", '{"type":"object","properties":{"\\ud800":{}}}')
    add("lark NUL", "grammar", 'start: "a\x00b"')
    add("lark NUL regex", "grammar", "start: /a\x00b/")
    add("gbnf NUL", "grammar", 'root ::= "a\x00b"')
    for text in (
        "", "start:", "start: ", "start", "root ::=", "root ::= ", "start: start", "start: start start", 'start: start "a" | "b"', 'start: start start | "a"', 'start: "a" start', 'start: start?', "start: start*", 'start: ""', 'start: "" start | ""', "start: a\na: b\nb: a",
        'start: a | "x"\na: b\nb: c\nc: a', 'start: /a/ /b/', "start: //", "start: /(/", 'start: / "test"\n', "start: /a", 'start: "a', "start: undefined", "start: UNDEFINED", "start: <[99999999]>", "start: <[0]>", "start: <[4294967295]>", "start: <[0-4294967295]>", "start: <[*]>", "start: <[^0]>", "start: <[5-3]>", "start: <[]>", "start: <|nope|>", "start: <|eos|>", "start: <[0]>*", "start: (<[*]>)*", "start: <[1,2,3]>{1,1000}",
        "start: %json {}", "start: %json", "start: %json {", "start: %regex {}", 'start: %regex {"substring_chars":"' + "ab" * 5000 + '"}', 'start: %regex {"substring_words":"' + "a b " * 5000 + '"}', 'start: %regex {"substring_chunks":["' + '","'.join(["ab"] * 5000) + '"]}', 'start: %regex {"substring_chars":"' + "abcdefghij" * 3000 + '"}*',
        "%llguidance {}\nstart: /a/", '%llguidance {"no_forcing":true}\nstart: /a/', '%llguidance {"allow_initial_skip":true}\n%ignore /./\nstart: "a"', "%llguidance {", "%llguidance []\nstart: /a/", '%llguidance {"limits":{}}\nstart: "a"',
        "%ignore /.*/\nstart: \"a\"", "%ignore //\nstart: \"a\"", '%ignore ""\nstart: "a"', "%ignore /[ ]*/\nstart: /a/", "%ignore start\nstart: /a/", "%import common.WS\n%ignore WS\nstart: \"a\"", "%import nope.WS\nstart: WS", "%import common.NOPE\nstart: NOPE", "%declare A\nstart: A", "%override start: /a/", "start: @other", "start: @0", "start: @start", "start[max_tokens=0]: /a*/", "start[max_tokens=99999999999999999999]: /a*/", "start[max_tokens=3]: start2\nstart2[max_tokens=2]: /(.|\\n)*/", "start[temperature=nan]: /a/", "start[temperature=-1e99]: /a/", "start[stop=\"\"]: /.*/", "start[stop=/.*/]: /.*/", "start[lazy]: /.*/", "start[lazy]: //", "start[suffix=\"x\"]: /.*/", "start[capture]: /.*/", "start[capture=\"x\"]: start2\nstart2[capture=\"x\"]: /.*/", "start[capture,max_tokens=5]: a*\na[capture]: /x/",
        'start: "a"{3,1}', 'start: "a"~3..1', 'start: "a"~-5', 'start: "z".."a"', 'start: "ab".."cd"', 'start: ""..""', "start: A\nA: A", 'start: A\nA: "a" A', "start: A\nA: B\nB: A", "start: A B\nA: /.*/\nB: /.*/", "start: (A | B)*\nA: /.*/\nB: /.*/", "start: A & B\nA: /a*/\nB: /b+/", "start: ~A\nA: /.*/", "start: A\nA: ~/(?s:.*)/", "start: A\nA: /a/ & /b/", "start: A | \"x\"\nA: /a/ & /b/", "start: A\nA: ~(/a*b/ & ~/c/)", "start: /a/l", "start: /a/isxmul", "start: \"\\ud800\"", "start: \"\\x\"", "start: /\\/", "start.5: \"a\"", "start.99999999999: \"a\"", "A.1: \"a\"\nstart: A", "!start: \"a\"", "?start: \"a\"", "_start: \"a\"", "start: a{b}\na{x}: x\nb: /b/", "start: a{a}\na{x}: x x", "start::bits: \"a\"", "start::0x5: \"a\"", "start::0\nstart: \"a\"", "start: r::0\nr::_ : \"a\" r::incr(_) %if lt(_, 100000) | \"b\"",
        "root ::= root", "root ::= root root | \"a\"", "root ::= \"a\" | root \"b\"", "root ::= [", "root ::= (", "root ::= \"", "root ::= \"\\", "root ::= [\\", "root ::= \"\\x\"", "root ::= \"\\u12\"", "root ::= \"\\u0000\"", "root ::= \"\\U00000000\"", "root ::= \"\\U00110000\"", "root ::= \"a\"{", "root ::= \"a\"{3,1}", "root ::= \"a\"{١}", "root ::= nope", "root ::= []", "root ::= [^]", "root ::= [^\\x00-\\xff]", "root ::= [z-a]", "root ::= .", "root ::= \"a\" #", "# only", "ROOT ::= \"a\"", "root ::= a-b\na-b ::= \"x\"\na_b ::= \"y\"", "root ::= \"/\" [/] \"\\n\"", "foo ::= \"a\"", "root ::= start\nstart ::= \"a\"", "root ::= (root)", "root ::= (a)\na ::= (b)\nb ::= (a)", "root ::= \"a\"{" + "9" * 5000 + "}",
        '{"grammars":[]}', '{"grammars":[{}]}', '{"grammars":[{"lark_grammar":"start: @x"}]}', '{"grammars":[{"lark_grammar":"start: @x"},{"name":"x","lark_grammar":"start: @x"}]}', '{"grammars":[{"name":"a","lark_grammar":"start: @b"},{"name":"b","lark_grammar":"start: @a"}]}', '{"grammars":[{"json_schema":{}}],"max_tokens":0}', '{"grammars":[{"lark_grammar":"start: /a*/"}],"max_tokens":1}', "{", "{}", "[]",
    ):  # fmt: skip
        add(f"grammar {text[:60]!r}", "grammar", text)


def schemas() -> None:
    # JSON schemas
    big = 10**9
    for schema in (
        {"type": "string", "minLength": big}, {"type": "string", "maxLength": big}, {"type": "string", "minLength": big, "maxLength": big}, {"type": "string", "maxLength": 100000}, {"type": "string", "minLength": 10000, "maxLength": 20000}, {"type": "string", "minLength": 5, "maxLength": 3}, {"type": "string", "minLength": -1}, {"type": "string", "maxLength": 10**30}, {"type": "string", "maxLength": 1.5},
        {"type": "array", "minItems": big}, {"type": "array", "maxItems": big}, {"type": "array", "minItems": 10000, "maxItems": 20000}, {"type": "array", "minItems": 100000, "items": {"type": "array", "minItems": 100000}}, {"type": "array", "items": {"type": "array", "maxItems": 1000, "items": {"type": "array", "maxItems": 1000, "items": {"type": "integer"}}}, "maxItems": 1000}, {"type": "array", "uniqueItems": True}, {"type": "array", "contains": {}}, {"type": "array", "prefixItems": [{"type": "integer"}] * 5000}, {"type": "array", "minItems": 10**30}, {"type": "array", "minItems": -1}, {"type": "array", "items": False, "minItems": 1},
        {"type": "integer", "multipleOf": 10**9}, {"type": "integer", "multipleOf": 10**18}, {"type": "integer", "multipleOf": 999983}, {"type": "integer", "multipleOf": 65537}, {"type": "integer", "multipleOf": 9973}, {"type": "number", "multipleOf": 1e-9}, {"type": "number", "multipleOf": 0.1234567}, {"type": "number", "multipleOf": 1e-300}, {"type": "number", "multipleOf": 1e300}, {"type": "number", "multipleOf": 0}, {"type": "integer", "multipleOf": -3}, {"type": "integer", "multipleOf": 0.5}, {"allOf": [{"type": "integer", "multipleOf": p} for p in (997, 991, 983, 977)]}, {"allOf": [{"type": "number", "multipleOf": p} for p in (0.97, 0.991, 9.83, 977)]},
        {"type": "integer", "minimum": -(10**30), "maximum": 10**30}, {"type": "integer", "minimum": 123456789, "maximum": 987654321987654}, {"type": "number", "minimum": 1e-300, "maximum": 1.7e308}, {"type": "number", "minimum": 0.123456789012345, "maximum": 0.9876543210987}, {"type": "number", "minimum": 1e400}, {"type": "number", "exclusiveMinimum": 5, "exclusiveMaximum": 5}, {"type": "integer", "minimum": 5, "maximum": 3}, {"type": "integer", "minimum": 9223372036854775807}, {"type": "integer", "maximum": -9223372036854775808}, {"type": "number", "minimum": -5e-324, "maximum": 5e-324},
        {"enum": list(range(5000))}, {"enum": [f"value {i} {'x' * (i % 50)}" for i in range(1000)]}, {"enum": ["x" * 60000]}, {"const": "x" * 60000}, {"const": "\u0000\uffff"}, {"const": {f"k{i}": i for i in range(4000)}}, {"enum": []}, {"enum": [[[]], {}, None, 1.0, 1, "1"]}, {"const": 10**400}, {"enum": [{"a": i} for i in range(3000)]},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}}, {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}, "required": [f"p{i}" for i in range(2000)]}, {"type": "object", "properties": {f"p{i}": {} for i in range(300)}, "additionalProperties": False}, {"type": "object", "required": [f"p{i}" for i in range(3000)]}, {"type": "object", "patternProperties": {"^(a|b)*c$": {"type": "integer"}}}, {"type": "object", "patternProperties": {f"^k{i}.*": {"type": "integer"} for i in range(200)}}, {"type": "object", "patternProperties": {".*": {}, "a": {}}}, {"type": "object", "patternProperties": {"(.*a.{20})": {"type": "integer"}}, "properties": {f"xax{i}": {} for i in range(200)}}, {"type": "object", "patternProperties": {"(": {}}}, {"type": "object", "propertyNames": {"pattern": "^a+$"}}, {"type": "object", "minProperties": 1000}, {"type": "object", "maxProperties": 5}, {"type": "object", "additionalProperties": {"$ref": "#"}}, {"type": "object", "unevaluatedProperties": False}, {"type": "object", "dependentSchemas": {"a": {}}},
        {"$ref": "#"}, {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, {"allOf": [{"$ref": "#"}]}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}}]}}}, {"$ref": "#/nope"}, {"$ref": "http://127.0.0.1:9/x.json"}, {"$ref": "https://example.com/schema"}, {"$ref": "file:///etc/passwd"}, {"$ref": 5}, {"$ref": "#/$defs/a%ZZ~9"}, {"$id": "http://[", "$ref": "#"}, {"$id": "urn:x", "$ref": "urn:x#"}, {"$dynamicRef": "#x"}, {"$recursiveRef": "#"}, {"$schema": "http://nope", "type": "integer"}, {"type": "array", "items": {"$ref": "#"}}, {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "minItems": 1, "items": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}}, "b": {"type": "object", "additionalProperties": {"$ref": "#/$defs/a"}}}},
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {"type": "integer"}}} for i in range(1000)]}, {"anyOf": [{"type": "array", "items": {"const": i}} for i in range(500)]}, {"anyOf": [{"type": "object", "properties": {"a": {"const": i}, "b": {}}, "required": ["a"]} for i in range(300)]}, {"anyOf": [{"type": "array", "items": {}}] * 1500}, {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"oneOf": [{"type": "object", "properties": {"k": {"const": i}}, "required": ["k"]} for i in range(60)]}, {"oneOf": [{"type": "string", "pattern": f"^.*{i}.*$"} for i in range(40)]}, {"allOf": [{"anyOf": [{"type": "object", "properties": {f"a{i}_{j}": {}}} for j in range(2)]} for i in range(18)]}, {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(12)], "type": "object"}, {"allOf": [{"oneOf": [{"minimum": i}, {"maximum": -i}]} for i in range(14)]}, {"allOf": [{"type": "string", "pattern": f"k{i}"} for i in range(60)]}, {"allOf": [{"type": "string", "pattern": f"(.*k{i}.{{10}})"} for i in range(6)]}, {"allOf": []}, {"anyOf": []}, {"not": {}}, {"not": {"type": "string"}}, {"if": {"type": "integer"}, "then": {"minimum": 5}, "else": {}}, {"anyOf": [{"anyOf": [{"anyOf": [{"anyOf": [{"type": "array", "items": {"const": f"{a}{b}{c}{d}"}} for a in range(4)]} for b in range(4)]} for c in range(4)]} for d in range(4)]},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, {"type": "string", "pattern": ".*" * 2000}, {"type": "string", "pattern": "(.|a)*a.{20}"}, {"type": "string", "pattern": "(?=a)b"}, {"type": "string", "pattern": "("}, {"type": "string", "pattern": "(a)\\1"}, {"type": "string", "pattern": "(.*[a-z].*){3,50}", "minLength": 50, "maxLength": 5000}, {"type": "string", "pattern": "^a*$", "minLength": 1000, "maxLength": 100000}, {"type": "string", "format": "email", "maxLength": 1000}, {"type": "string", "format": "uri", "minLength": 100}, {"type": "string", "format": "nope"}, {"type": "string", "format": "ipv6", "pattern": "^.*a.*b.*$"}, {"type": "string", "format": "regex"}, {"type": "string", "format": "date-time", "minLength": 10**6},
        {"x-guidance": {"whitespace_pattern": "(.|a)*a.{20}"}, "type": "object"}, {"x-guidance": {"whitespace_pattern": "("}}, {"x-guidance": {"whitespace_pattern": ".*"}, "type": "object"}, {"x-guidance": {"item_separator": "x" * 60000}, "type": "array"}, {"x-guidance": {"item_separator": "(.|a)*a.{20}"}, "type": "array"}, {"x-guidance": {"key_separator": "("}, "type": "object"}, {"x-guidance": {"key_separator": ""}, "type": "object"}, {"x-guidance": {"nope": 1}}, {"x-guidance": 5}, {"x-guidance": {"lenient": True}, "not": {}}, {"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "integer"}]}, {"x-guidance": {"json_allowed_escapes": ""}, "type": "string"}, {"x-guidance": {"json_allowed_escapes": "\u0000q" * 1000}, "type": "string"}, {"x-guidance": {"retriever": "x"}}, {"x-guidance": {"whitespace_flexible": "x"}},
        True, False, [], 5, "x", None, {}, {"type": "nope"}, {"type": []}, {"type": ["string", "string"]}, {"type": 5}, {"properties": 5}, {"items": 5}, {"required": 5}, {"enum": 5}, {"anyOf": 5}, {"anyOf": {}}, {"minimum": "x"}, {"pattern": 5}, {"$defs": 5, "$ref": "#/$defs/a"}, {"type": "object", "properties": {"": {}}}, {"type": "object", "properties": {"a\u0000\"\\": {}}},
    ):  # fmt: skip
        add(f"json {json.dumps(schema)[:70]}", "json", schema)
    for text in ("", "{", "nul", "NaN", '{"const": NaN}', '{"const": 1e999}', '{"a":1,"a":2}', '{"type":"integer","minimum":' + "9" * 60000 + "}", '{"type":"number","multipleOf":0.' + "0" * 60000 + "1}", '{"const":' + "9" * 60000 + "}", '{"type":"string","maxLength":' + "9" * 30 + "}", "\ufeff{}", "{} {}", '{"type":"integer"} x', '{"const":"\\u0000"}'):
        add(f"json text {text[:40]!r}", "json", text)


def long_texts() -> None:
    # 64 KB of each kind
    add("64K regex letters", "regex", "a" * SIZE)
    add("64K regex dots", "regex", "." * SIZE)
    add("64K regex alternation", "regex", "|".join("abcdefg" for _ in range(SIZE // 8)))
    add("64K regex alternation of words", "regex", "|".join(f"{i:07x}" for i in range(SIZE // 8)))
    add("64K regex optional letters", "regex", "a?" * (SIZE // 2))
    add("64K regex stars", "regex", "a*b*" * (SIZE // 4))
    add("64K regex classes", "regex", "[a-z]" * (SIZE // 5))
    add("64K regex unicode classes", "regex", r"\w" * (SIZE // 2))
    add("64K regex big class", "regex", "[" + "".join(chr(0x400 + 2 * i) for i in range(SIZE // 2)).replace("\ud800", "") .encode("utf-8", "ignore").decode() + "]+")
    add("64K regex intersections", "regex", "(" + "|".join(f".*{i}" for i in range(SIZE // 6)) + ")")
    add("64K lark alternatives", "grammar", "start: " + " | ".join(f'"{i:05d}"' for i in range(SIZE // 10)))
    add("64K lark rules", "grammar", "start: r0\n" + "\n".join(f'r{i}: "a" | "b" r{i + 1}' for i in range(SIZE // 20)) + f'\nr{SIZE // 20}: "c"')
    add("64K lark rules all of all", "grammar", "start: " + " | ".join(f"r{i}" for i in range(1500)) + "\n" + "\n".join(f'r{i}: "a" start "{i}"' for i in range(1500)))
    add("64K lark ambiguous terminals", "grammar", "start: (" + " | ".join(f"T{i}" for i in range(1500)) + ")*\n" + "\n".join(f"T{i}: /[a-z]*{i}?/" for i in range(1500)))
    add("64K lark sequence", "grammar", "start: " + 'r ' * (SIZE // 2) + '\nr: "a" | "b" r')
    add("64K lark optional sequence", "grammar", "start: " + 'r? ' * (SIZE // 3) + '\nr: "a" | "b" r')
    add("64K lark string", "grammar", 'start: "' + "a" * SIZE + '"')
    add("64K lark comment", "grammar", 'start: "a"\n// ' + "x" * SIZE)
    add("64K lark newlines", "grammar", 'start: "a"' + "\n" * SIZE)
    add("64K gbnf string", "grammar", 'root ::= "' + "a" * SIZE + '"')
    add("64K gbnf alternatives", "grammar", "root ::= " + " | ".join(f'"{i:05d}"' for i in range(SIZE // 10)))
    add("64K gbnf rules", "grammar", "root ::= r0\n" + "\n".join(f'r{i} ::= "a" | "b" r{i + 1}' for i in range(SIZE // 24)) + f'\nr{SIZE // 24} ::= "c"\n')
    add("64K gbnf recursive rules", "grammar", "root ::= r0\n" + "\n".join(f'r{i} ::= "a" root | "b" r{i + 1}' for i in range(SIZE // 30)) + f'\nr{SIZE // 30} ::= "c"\n')
    add("64K gbnf class", "grammar", "root ::= [" + "a" * SIZE + "]")
    add("64K gbnf comment", "grammar", "# " + "x" * SIZE + '\nroot ::= "a"\n')
    add("64K gbnf spaces", "grammar", "root ::= " + " " * SIZE + '"a"')
    add("64K lark spaces before colon", "grammar", " " * SIZE + "start: /a/")
    add("64K spaces and no grammar", "grammar", "\n \t" * (SIZE // 3))
    add("64K json properties", "json", {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(SIZE // 28)}})
    add("64K json properties any", "json", {"type": "object", "properties": {f"p{i}": {} for i in range(SIZE // 12)}})
    add("64K json enum words", "json", {"enum": [f"{i:05d}" for i in range(SIZE // 9)]})
    add("64K json anyOf", "json", {"anyOf": [{"type": "array", "items": {"const": i}} for i in range(SIZE // 48)]})
    add("64K json patterns", "json", {"type": "object", "patternProperties": {f"a{i}": {} for i in range(SIZE // 14)}})
    add("64K json string", "json", json.dumps({"const": "x"}) + " " * SIZE)


def ambiguous() -> None:
    # Ambiguity while stepping
    for name, text in (
        ("ss", 'start: s\ns: s s | "a"'), ("sss", 'start: s\ns: s s s | s s | "a" |'), ("palindrome", 'start: s\ns: "a" s "a" | "b" s "b" |'), ("many nullable", "start: (a? b? c? d? e?)*\n" + "\n".join(f'{c}: "x" | ' for c in "abcde")), ("hidden left", 'start: e start "a" | "a"\ne: ""'), ("right", 'start: "a" start | "a"'), ("expression", 'start: e\ne: e "+" e | e "*" e | "(" e ")" | /[0-9]+/ | e "?" e ":" e'), ("terminals overlap", "start: (A|B|C|D)*\nA: /a+/\nB: /(a|b)+/\nC: /[ab]*a[ab]{6}/\nD: /[abc]{1,40}/"), ("regex of spaces", "start: (/ +/ | /\\s+/ | x)*\nx: /[a-z ]+/"), ("prefix rules", "start: " + " | ".join(f"r{i}" for i in range(300)) + "\n" + "\n".join(f'r{i}: "a" r{(i * 7 + 1) % 300} | "b"' for i in range(300))), ("dense rules", "start: r0\n" + "\n".join(f"r{i}: " + " | ".join(f'"a" r{(i + j * j) % 60}' for j in range(20)) + ' | "b"' for i in range(60))), ("json in lark", "start: %json {} (\",\" %json {})*"), ("anything", "start: /(?s:.)*/ start | \"x\""), ("counts", "start: (x~1..200)~1..200\nx: /a/ | /aa/ | /aaa/"), ("many max_tokens", "start: " + " ".join(f"t{i}" for i in range(100)) + "\n" + "\n".join(f"t{i}[max_tokens=3]: /(?s:.)*/" for i in range(100))),
    ):  # fmt: skip
        add(f"ambiguous {name}", "grammar", text)
    for name, text in (
        ("late a 12", "[ab]*a[ab]{12}"), ("late any 10", "(?s:.*)a(?s:.{10})b"), ("two counters", "(a{1,300}b{1,300}){1,300}"), ("overlap counters", "([a-c]{1,300}[b-d]{1,300}){1,30}"), ("contains", "(?s:.*)(foo|bar|baz)(?s:.*)(qux|quux)(?s:.*)"), ("unicode counters", r"(\w{1,200}\W{1,200}){1,200}"), ("words", "([a-z]+ ){1,500}"), ("sum", "([0-9]{1,20}[+]){0,400}[0-9]{1,20}"),
    ):  # fmt: skip
        add(f"stepping {name}", "regex", text)


def just_allowed() -> None:
    # long because: an attack a line
    # As large as the checks before the library allow
    for rules in (149, 199):
        add(f"edge lark rule chain {rules}", "grammar", "start: r0\n" + "\n".join(f'r{i}: (((("a" r{i + 1}))))' for i in range(rules - 2)) + f'\nr{rules - 2}: "b"')
        add(f"edge lark terminal chain {rules}", "grammar", "start: T0\n" + "\n".join(f'T{i}: (((("a" T{i + 1}))))' for i in range(rules - 2)) + f'\nT{rules - 2}: "b"')
        add(f"edge lark dense {rules}", "grammar", "start: r0\n" + "\n".join(f"r{i}: " + " | ".join(f'"a" r{(i + j * j) % (rules - 2)}' for j in range(7)) + ' | "b"' for i in range(rules - 2)))
        add(f"edge lark overlapping terminals {rules}", "grammar", "start: (" + " | ".join(f"T{i}" for i in range(rules - 2)) + ")*\n" + "\n".join(f"T{i}: /[a-z]*{i}?/" for i in range(rules - 2)))
        add(f"edge lark all of all {rules}", "grammar", "start: " + " | ".join(f"r{i}" for i in range(rules - 2)) + "\n" + "\n".join(f'r{i}: "a" start "{i}"' for i in range(rules - 2)))
    add("edge gbnf chain", "grammar", "root ::= r0\n" + "\n".join(f'r{i} ::= "a" (((r{i + 1})))' for i in range(147)) + '\nr147 ::= "b"\n')
    add("edge gbnf wide", "grammar", "root ::= " + " | ".join('"' + "abcdefg" * 3 + '"' for i in range(1300)))
    add("edge lark parentheses", "grammar", "start: " + _nest("(", ")", 1490, '"a"'))
    add("edge lark stars", "grammar", "start: " + _nest("(", ")*", 1490, '"a"'))
    add("edge lark intersections", "grammar", "start: A\nA: " + " & ".join(f"/.*k{i}.*/" for i in range(40)))
    add("edge lark optional", "grammar", "start: " + "r? " * 3000 + '\nr: "a" | "b" r')
    for name, piece, count in (("optional", "a?", 499), ("stars", "a*b*", 249), ("counted", "a{1,99}", 499), ("dots", ".*b", 499), ("classes", r"\w", 999), ("optional classes", r"\w?", 499), ("not classes", r"\W*\w?", 249), ("letters", "a", 16000), ("empty options", "(x|y|)", 2600), ("words", "abcdefg|", 2000)):
        add(f"edge regex {name}", "regex", piece * count)
    add("edge regex big class", "regex", "[" + "".join(chr(0x400 + 2 * i) for i in range(6000)) + "]+")
    add("edge regex big classes", "regex", "".join("[" + "".join(chr(0x400 + 2 * i + j) for i in range(400)) + "]*" for j in range(19)))
    add("edge json patterns", "json", {"allOf": [{"type": "string", "pattern": f"(.*k{i}.{{10}})"} for i in range(11)]})
    add("edge json patterns short", "json", {"allOf": [{"type": "string", "pattern": f"k{i}"} for i in range(11)]})
    add("edge json required", "json", {"type": "object", "required": [f"p{i}" for i in range(1400)]})
    add("edge json optional", "json", {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(600)}, "additionalProperties": False})
    add("edge json anyOf", "json", {"anyOf": [{"type": "array", "items": {}}] * 1300})
    add("edge json anyOf objects", "json", {"anyOf": [{"type": "object", "properties": {"a": {"const": i}, "b": {}}} for i in range(500)]})
    add("edge json multipleOf", "json", {"type": "object", "properties": {f"p{i}": {"type": "integer", "multipleOf": 9000 + i} for i in range(200)}})
    add("edge json lengths", "json", {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 10000 + i} for i in range(300)}})
    add("edge json pattern lengths", "json", {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "^(a|b.*c)+$", "maxLength": 10000 + i} for i in range(300)}})
    add("edge json patterns large", "json", {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "(.|a)*a.{20}" + str(i)} for i in range(500)}})
    add("edge json pattern optional", "json", {"type": "string", "pattern": "a?" * 16000})
    add("edge json patternProperties 20", "json", {"type": "object", "patternProperties": {f"^a{i}b.*$": {} for i in range(20)}})
    add("edge json patternProperties 20 hard", "json", {"type": "object", "patternProperties": {f"^a{i:02d}(.*b.{{12}})$": {} for i in range(20)}})
    add("edge json multipleOf 20", "json", {"type": "object", "properties": {f"p{i}": {"type": "integer", "multipleOf": 401 + 2 * i} for i in range(20)}})
    add("edge json patterns 8", "json", {"allOf": [{"type": "string", "pattern": f"(.*k{i}.{{10}})"} for i in range(7)]})
    add("edge json patterns 100", "json", {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "(.|a)*a.{20}" + str(i)} for i in range(100)}})
    add("edge json formats 100", "json", {"type": "object", "properties": {f"p{i}": {"type": "string", "format": "uri", "maxLength": 100 + i} for i in range(100)}})
    add("edge lark intersections 9", "grammar", "start: A\nA: " + " & ".join(f"/.*k{i}.*/" for i in range(9)))
    add("edge lark intersections 9 hard", "grammar", "start: A\nA: " + " & ".join(f"/(.|\\n)*k{i}.{{12}}(.|\\n)*/" for i in range(9)))
    for name, piece, count in (("optional 300", "a?", 299), ("optional classes 300", r"\w?", 299), ("not classes 300", r"\W*\w?", 149), ("empty options 16K", "(x|y|)", 2600), ("optional 300 mixed", "(a?b|c?)", 149)):
        add(f"edge regex {name}", "regex", piece * count)
    add("edge json self", "json", {"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 240 + [{"type": "integer"}]})
    add("edge json self objects", "json", {"anyOf": [{"type": "object", "additionalProperties": {"$ref": "#"}, "properties": {f"p{i}": {}}} for i in range(120)]})
    add("edge json self optional", "json", {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(240)}})
    def chained(form: str, size: int = SIZE) -> str:
        links, i = [], 0
        while sum(map(len, links[-1:])) * (i + 2) < size - 200:
            links.append(form.replace("NEXT", f"#/d/{i + 1:x}").join((f'"{i:x}":', ",")))
            i += 1
        return '{"$ref":"#/d/0","d":{' + "".join(links) + f'"{i:x}":{{"type":"integer"}}}}}}'

    add("edge json ref chain", "json", chained('{"$ref":"NEXT"}'))
    add("edge json ref chain anyOf", "json", chained('{"anyOf":[{"$ref":"NEXT"}]}'))
    add("edge json ref chain allOf", "json", chained('{"allOf":[{"$ref":"NEXT"}]}'))
    add("edge json ref chain beside", "json", chained('{"$ref":"NEXT","type":"integer"}'))
    for links, nest in ((195, 13), (195, 25), (38, 24), (120, 6)):
        for name, begin, end in (("anyOf", '{"anyOf":[', "]}"), ("allOf", '{"allOf":[', "]}"), ("items", '{"items":', "}"), ("not items", '{"anyOf":[{"items":', "}]}")):
            add(f"edge json deep links {name} {links} {nest}", "json", '{"$ref":"#/d/0","d":{' + "".join(f'"{i}":' + begin * nest + f'{{"$ref":"#/d/{i + 1}"}}' + end * nest + "," for i in range(links)) + f'"{links}":{{"type":"integer"}}}}}}')
    add("edge json ref chain items", "json", chained('{"items":{"$ref":"NEXT"}}'))
    add("edge json ref chain required", "json", chained('{"type":"object","required":["a"],"properties":{"a":{"$ref":"NEXT"}}}'))
    add("edge json format", "json", {"type": "object", "properties": {f"p{i}": {"type": "string", "format": "uri", "maxLength": 100 + i} for i in range(300)}})
    add("edge json numbers", "json", {"type": "object", "properties": {f"p{i}": {"type": "number", "minimum": 0.123456789 + i, "maximum": 1e300} for i in range(500)}})
    add("edge json patternProperties", "json", {"type": "object", "patternProperties": {f"^a{i}b.*$": {} for i in range(600)}})


def embedded() -> None:
    """Texts of one kind within another."""
    for piece, count in (
        ("a?", 900),
        ("a?", 15_000),
        ("a*b*", 450),
        (r"\w", 1900),
        (r"\w", 15_000),
        ("a{1000000000}", 100),
    ):
        add(f"lark regex {piece} {count}", "grammar", "start: /" + piece * count + "/")
        add(f"json pattern {piece} {count}", "json", {"type": "string", "pattern": piece * count})
        add(
            f"lark json pattern {piece} {count}",
            "grammar",
            "start: %json " + json.dumps({"type": "string", "pattern": piece * count}),
        )
    letters = [chr(0x400 + 2 * (i * 7919 % 7900)) for i in range(7900)]
    add("lark big class", "grammar", "start: /[" + "".join(letters) + "]+/")
    for schema in (
        {"type": "integer", "multipleOf": 999_983},
        {"type": "integer", "multipleOf": 9_999},
        {"allOf": [{"type": "string", "pattern": f"k{i}"} for i in range(60)]},
        {"type": "object", "patternProperties": {f"a{i}": {} for i in range(600)}},
    ):
        text = json.dumps(schema)
        add(f"lark json {text[:50]}", "grammar", f"start: %json {text}")
        add(f"lark json twice {text[:50]}", "grammar", f"start: %json {text} %json {text}")
        add(f"lark json behind a comment {text[:50]}", "grammar", f"start: %json // x\n {text}")
    add("lark deep json", "grammar", 'start: "a" %json ' + _nest('{"items":', "}", 5000, "{}"))
    for options in (
        '{"whitespace_flexible":true}',
        '{"item_separator":"(.|a)*a.{24}"}',
        '{"no_forcing":false}',
        "5",
        '{"lenient":true}',
    ):
        add(f"json options {options}", "json", '{"type":"object","x-guidance":' + options + "}")
        add(
            f"lark options {options}",
            "grammar",
            f"%llguidance {options}\nstart: /a{{1000000000}}/\n%llguidance {options}",
        )


def extreme_numbers() -> None:
    """About the ends of 64 bits, where the library counts in another type than the one it reads."""
    numbers = ["-9223372036854775808", "-9223372036854775807", "-9223372036854775300", "-9223372036854774784", "-1e19",
               "9223372036854775807", "18446744073709551616", "1e308", "-1e308", "5e-324", "1" + "0" * 400, "-1" + "0" * 400]
    for number in numbers:
        for keys in ('"const":N', '"enum":[N]', '"type":"integer","const":N', '"type":"integer","minimum":N,"maximum":N',
                     '"type":"number","exclusiveMinimum":N', '"minItems":N', '"maxLength":N', '"items":{"enum":[1,N]}'):
            add(f"json number {keys} {number[:25]}", "json", "{" + keys.replace("N", number) + "}")
        add(f"lark json number {number[:25]}", "grammar", 'start: "a" %json {"const":N}'.replace("N", number))
    for number in ("2147483648", "4294967296", "18446744073709551616", "1" + "0" * 400):
        add(f"regex repetition {number[:25]}", "regex", "a{N}".replace("N", number))
        add(f"lark tokens {number[:25]}", "grammar", "start: <[N-N]>".replace("N", number))
        add(f"gbnf repetition {number[:25]}", "grammar", 'root ::= "a"{1,N}'.replace("N", number))


for part in (extreme_numbers, nested, repeated, odd_characters, schemas, long_texts, ambiguous, just_allowed, embedded):
    part()
ATTACKS: list[Attack] = found


def representative() -> list[Attack]:
    """The first and the last of each kind: attacks on one field whose names begin with the same two words, numbers left out."""
    kinds: dict[tuple[str, ...], list[Attack]] = {}
    for attack in ATTACKS:
        words = re.sub(r"\d+", "", attack[0]).split()[:2]
        kinds.setdefault((attack[1], *words), []).append(attack)
    chosen = {attack[0] for kind in kinds.values() for attack in (kind[0], kind[-1])}
    return [attack for attack in ATTACKS if attack[0] in chosen]
