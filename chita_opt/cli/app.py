"""All commands: each module adds its own to the group as it is imported."""

from __future__ import annotations

from chita_opt.cli import (
    instance_commands,
    network_commands,
    result_commands,
    training_commands,
)
from chita_opt.cli.group import app

COMMANDS = (instance_commands, network_commands, result_commands, training_commands)

__all__ = ["COMMANDS", "app"]
