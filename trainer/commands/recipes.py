"""`recipes`: lists the recipes, their sources and how they differ from them."""

import json
import textwrap

from trainer import recipes
from trainer.commands.flags.command_line import CommandLine
from trainer.machine.signals import StopRequest

SUMMARY = """Lists the recipes and how they differ from their sources.  Prints the source, the
networks, the training loop and the default length of each."""
WIDTH = 88


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("recipes", SUMMARY)
    parser.boolean("json", "print one JSON object", default=False)
    values = parser.parse(arguments)
    if values["json"]:
        print(json.dumps({name: _facts(name) for name in recipes.RECIPES}))
        return
    print("\n\n".join(_describe(name) for name in recipes.RECIPES))


def _facts(name: str) -> dict[str, object]:
    recipe = recipes.RECIPES[name]
    return {
        "source": recipe.source,
        "networks": recipe.architecture,
        "loop": recipe.updates,
        "length": str(recipes.resolve({"recipe": name}).length),
        "differences": list(recipe.differences),
    }


def _describe(name: str) -> str:
    """Returns the facts of a recipe as indented paragraphs."""
    lines = [name]
    for title, fact in _facts(name).items():
        texts = fact if isinstance(fact, list) else [str(fact)]
        for number, text in enumerate(texts):
            label = f"{title.capitalize()}:" if number == 0 else ""
            lines += textwrap.wrap(
                text,
                WIDTH,
                initial_indent=f"  {label:14}",
                subsequent_indent=" " * 16,
                break_on_hyphens=False,
            )
    return "\n".join(lines)
