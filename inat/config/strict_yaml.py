"""YAML from a stranger: plain values alone, and never more than a config needs."""

from typing import Any

import yaml

from inat.core.errors import InputError, one_line

LARGEST_FILE = 100_000
DEEPEST_LEVEL = 20


def parse_yaml(content: bytes | str) -> Any:
    """Reads YAML's safe subset; an InputError for a duplicate key, an alias, or a tag."""
    try:
        return yaml.load(content, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(one_line(error)) from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset, without duplicate keys, aliases, tags or bottomless nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if (tag := self.peek_event().tag) is not None:  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"tags ({tag}) are not allowed; write the plain value")
        self.depth += 1
        if self.depth > DEEPEST_LEVEL:
            raise yaml.YAMLError(f"nested deeper than {DEEPEST_LEVEL} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if isinstance(value, int) and abs(value) >= 2**63:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"the number in line {line} has more than 64 bits")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} in line {line} is not a name")
            if key in seen:
                raise yaml.YAMLError(f"the key {key} stands twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)
