"""Puts schemas through llama.cpp's own converter and grammar parser. What they refuse ends the process.

    python -m tests.server.llama_cpp FOLDER <QUESTIONS

FOLDER has llama.cpp's libraries. Each question is a schema with texts; its answer says which of the texts the grammar takes.
"""

import json
import sys
from ctypes import (
    CDLL,
    RTLD_GLOBAL,
    Structure,
    byref,
    c_bool,
    c_char,
    c_char_p,
    c_size_t,
    c_uint32,
    c_void_p,
    create_string_buffer,
)
from pathlib import Path
from typing import Any, Final, cast

# The names of C++ functions, as GCC writes them: common_json::parse, json_schema_to_grammar, llama_grammar_*.
PARSE: Final = "_ZN11common_json5parseERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
CONVERT: Final = "_Z22json_schema_to_grammarB5cxx11RK11common_jsonb"
INIT: Final = "_Z23llama_grammar_init_implPK11llama_vocabPKcS3_bPS3_mPKim"
ACCEPT: Final = "_Z20llama_grammar_acceptP13llama_grammarj"
STACKS: Final = "_Z24llama_grammar_get_stacksP13llama_grammar"
LIBRARIES: Final = ("libggml-base.so", "libggml.*.so", "libllama.*.so", "libllama-common.so")  # each needs those before it


class String(Structure):
    """A std::string."""

    _fields_ = (("text", c_char_p), ("length", c_size_t), ("_", c_char * 16))


class Vector(Structure):
    """A std::vector."""

    _fields_ = (("begin", c_size_t), ("end", c_size_t), ("_", c_size_t))


class LlamaCpp:
    """The functions that `llama-server` runs for the parameters of a tool."""

    def __init__(self, folder: Path) -> None:
        paths = [next(folder.glob(name)) for name in LIBRARIES]
        *_, llama, common = (CDLL(str(path), mode=RTLD_GLOBAL) for path in paths)
        self._parse, self._convert = common[PARSE], common[CONVERT]
        self._init, self._accept, self._stacks = llama[INIT], llama[ACCEPT], llama[STACKS]
        self._init.restype = self._stacks.restype = c_void_p

    def grammar(self, schema: dict[str, Any]) -> bytes:
        text = json.dumps(schema).encode()
        parsed, grammar = create_string_buffer(256), String()
        self._parse(byref(parsed), byref(String(text, len(text))))
        self._convert(byref(grammar), byref(parsed), c_bool(False))
        return cast("bytes", grammar.text)

    def takes(self, grammar: bytes, text: str) -> bool:
        state = c_void_p(self._init(None, grammar, b"root", c_bool(False), None, c_size_t(0), None, c_size_t(0)))
        assert state, "llama.cpp can't parse the grammar that it made"
        for character in text:
            self._accept(state, c_uint32(ord(character)))
        stacks = Vector.from_address(self._stacks(state))
        size = 24  # of a vector; an empty one is a way through the grammar that is at its end
        ways = [Vector.from_address(address) for address in range(stacks.begin, stacks.end, size)]
        return any(way.begin == way.end for way in ways)


def main() -> None:
    llama = LlamaCpp(Path(sys.argv[1]))
    answers: list[list[bool]] = []
    for question in json.load(sys.stdin):
        grammar = llama.grammar(question["schema"])
        answers.append([llama.takes(grammar, text) for text in question["texts"]])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
