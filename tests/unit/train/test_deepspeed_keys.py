"""What the login node knows of DeepSpeed's keys, without importing it."""

import pytest
from deepspeed.runtime.precision_config import DeepSpeedBF16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel

from toolkit.config import owned


@pytest.mark.parametrize(
    ("section", "model"), [("zero_optimization", DeepSpeedZeroConfig), ("bf16", DeepSpeedBF16Config)]
)
def test_the_keys_of_a_section_are_those_that_deepspeed_takes(section: str, model: type[BaseModel]) -> None:
    fields = model.model_fields
    assert model.model_config["extra"] == "forbid"
    switches = {name for name, field in fields.items() if field.annotation in (bool, bool | None)}
    numbers = {name for name, field in fields.items() if field.annotation is int or name == "stage"}
    inner = set(fields) - switches - numbers
    by_alias = {name: field.alias for name, field in fields.items() if field.alias}
    for mine, theirs in (
        (owned._SWITCHES[section], switches), (owned._NUMBERS[section], numbers), (owned._INNER[section], inner)
    ):  # fmt: skip
        assert set(mine) == theirs | {by_alias[name] for name in theirs if name in by_alias}
