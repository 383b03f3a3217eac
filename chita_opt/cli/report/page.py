"""From content to one file of HTML that asks for nothing outside itself."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from chita_opt import __version__
from chita_opt.cli.report.charts import HEIGHT, WIDTH
from chita_opt.cli.report.sections import Page
from chita_opt.cli.screen import SCOPE_SENTENCE, number, percent


def render_page(page: Page) -> str:
    """The page as HTML; the same content gives the same text.

    All words of the files are escaped, and the page's policy allows no request, no image but those
    inside it, and no script but its own, named by its digest.
    """
    environment = Environment(
        loader=PackageLoader("chita_opt.cli.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "code": _code}
    script = environment.get_template("sort.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        page=page,
        script=Markup(script),  # our own text
        script_digest=digest,
        scope=SCOPE_SENTENCE,
        version=__version__,
        width=WIDTH,
        height=HEIGHT,
    )


def _code(text: str) -> Markup:
    """Escaped text with `words` between backticks as code."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts)))


__all__ = ["render_page"]
