"""The reference: a page for every public name of `naqopt`, and one for every public module.

Names are found, not listed, so that what is added to the package has its page. The build warns of a
public name without one.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import naqopt
from extensions import pages

# Sections of the first page by the module that a name comes from; others follow the functions.
_SECTIONS = {
    "Online, for mini-batches": ("naqopt.optimizers.online",),
    "Full batch": ("naqopt.optimizers.full_batch", "naqopt.optimizers.mnaq"),
    "Self-scaled": ("naqopt.optimizers.self_scaled",),
    "Recurrent networks": ("naqopt.optimizers.adaqn", "naqopt.optimizers.asnaq"),
    "Variance reduced": ("naqopt.optimizers.variance_reduced",),
    "Symmetric rank one": ("naqopt.optimizers.symmetric_rank_one",),
    "More optimizers": ("naqopt.optimizers",),
    "Step lengths, radii, schedules": ("naqopt.steps",),
    "Beside the optimizers": ("naqopt",),
}


def public_names() -> dict[str, Any]:
    """Returns what `naqopt` offers by its full name; of a module what has an example in it."""
    names: dict[str, Any] = {}
    for name in naqopt.__all__:
        value = getattr(naqopt, name)
        if inspect.ismodule(value):
            of_users = {x: y for x, y in own(value).items() if "Example:" in (y.__doc__ or "")}
            names |= {f"naqopt.{name}.{inner}": x for inner, x in of_users.items()}
        else:
            names[f"naqopt.{name}"] = value
    return names


def modules() -> Iterator[ModuleType]:
    """Yields the public modules below `naqopt`."""
    for found in pkgutil.walk_packages(naqopt.__path__, "naqopt."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def own(module: ModuleType) -> dict[str, Any]:
    """Returns the public functions and classes that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


def first_line(value: Any) -> str:
    """Returns the summary of a docstring."""
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _section(value: Any) -> str:
    """Returns the section of a name, that of the longest prefix of its module."""
    prefixes = {
        prefix: section
        for section, modules_of_it in _SECTIONS.items()
        for prefix in modules_of_it
        if f"{value.__module__}.".startswith(f"{prefix}.")
    }
    return prefixes[max(prefixes, key=len)]


def _heading(text: str, underline: str = "=") -> str:
    return f"{text}\n{underline * len(text)}\n"


def _directive(value: Any) -> str:
    return "autoclass" if inspect.isclass(value) else "autofunction"


def _page(full_name: str, value: Any) -> str:
    options = "   :members:\n" if inspect.isclass(value) else ""
    target = full_name.replace("naqopt.", "naqopt::", 1)
    return f"{_heading(full_name)}\n.. {_directive(value)}:: {target}\n{options}"


def _module_page(module: ModuleType, offered: Mapping[str, Any]) -> str:
    """A module's docstring and what users do not find in `naqopt` itself."""
    elsewhere = {id(value): name for name, value in offered.items()}
    members = own(module)
    exported = [elsewhere[id(x)] for x in members.values() if id(x) in elsewhere]
    hidden = [name for name, x in members.items() if id(x) in elsewhere]
    text = _heading(module.__name__)
    if module.__name__ in offered:  # a function has the same name: the module has no entry
        text += f"\n{inspect.getdoc(module)}\n"
        for name, value in members.items():
            if name not in hidden:
                text += f"\n.. {_directive(value)}:: {module.__name__}::{name}\n"
                text += "   :members:\n" if inspect.isclass(value) else ""
    else:
        text += f"\n.. automodule:: {module.__name__}\n"
        if len(hidden) < len(members):
            text += "   :members:\n"
            text += f"   :exclude-members: {', '.join(hidden)}\n" if hidden else ""
    if exported:
        text += f"\nUsers call: {', '.join(f'`{name}`' for name in exported)}.\n"
    return text


def index(offered: Mapping[str, Any]) -> str:
    """Returns the first page: the names in sections."""
    text = _heading("The interface") + "\n"
    text += "Every public name, with formulas, arguments, what it costs and when not to use it.\n"
    for section in _SECTIONS:
        rows = {name: x for name, x in offered.items() if _section(x) == section}
        if not rows:
            continue
        text += f"\n{_heading(section, '-')}\n.. list-table::\n   :widths: auto\n\n"
        for name, value in rows.items():
            text += f"   * - :doc:`{name} <{name}>`\n     - {first_line(value)}\n"
        text += "\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in rows)
    text += "\nFor those who add a method or an update: :doc:`the modules behind it <modules>`.\n"
    return text + "\n.. toctree::\n   :hidden:\n\n   modules\n"


def _modules_page(names: list[str]) -> str:
    text = _heading("The modules")
    text += "\nFor those who add a method or an update; see :doc:`../project/extend`.\n"
    text += "\n.. toctree::\n   :maxdepth: 1\n\n"
    return text + "".join(f"   modules-{name}\n" for name in names)


def all_pages() -> dict[str, str]:
    """Returns the pages by file name."""
    offered, found = public_names(), list(modules())
    return (
        {
            "index.rst": index(offered),
            "modules.rst": _modules_page([module.__name__ for module in found]),
        }
        | {f"{name}.rst": _page(name, value) for name, value in offered.items()}
        | {f"modules-{module.__name__}.rst": _module_page(module, offered) for module in found}
    )


def _generate(app: Any, config: Any) -> None:
    del config
    pages.write(Path(app.srcdir) / "api", all_pages())


def _check(app: Any, env: Any) -> list[str]:
    """Warns of public names that no page documents."""
    from sphinx.util import logging

    documented = env.domaindata["py"]["objects"]
    expected = set(public_names()) | {module.__name__ for module in modules()}
    for module in modules():
        offered = {id(value) for value in public_names().values()}
        expected |= {
            f"{module.__name__}.{x}" for x, v in own(module).items() if id(v) not in offered
        }
    for name in sorted(expected - set(documented)):
        logging.getLogger(__name__).warning("%s is public and has no page", name)
    return []


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool:
    """Leaves out a NamedTuple's fields, which its docstring tells under Attributes."""
    del app, what, name, options
    return skip or type(member).__name__ == "_tuplegetter"


def setup(app: Any) -> dict[str, bool]:
    """Registers the generation and the check."""
    app.connect("config-inited", _generate)
    app.connect("env-updated", _check)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
