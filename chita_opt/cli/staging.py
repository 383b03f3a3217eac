"""``prune-in-stages``: the user's own network, the gradients measured again at every stage."""

from __future__ import annotations

from chita_opt.cli.options import (
    BudgetChoice,
    CurvatureChoice,
    LayerChoice,
    NetworkOutput,
    UserCode,
)
from chita_opt.cli.pruning import finish, read_user_code, shared_options
from chita_opt.cli.screen import check_folders, stages
from chita_opt.cli.stage_options import StageChoice
from chita_opt.cli.user_code import LOSSES
from chita_opt.nn.stages import StageOptions, prune_in_stages


def run_staged(
    code: UserCode,
    budget: BudgetChoice,
    curvature: CurvatureChoice,
    layers: LayerChoice,
    method: str,
    choice: StageChoice,
    output: NetworkOutput,
) -> int:
    """Prune the user's model in stages, write and print the result."""
    check_folders(output.out, choice.progress_file)
    model, data, test = read_user_code(code)
    with stages() as shown:
        result = prune_in_stages(
            model,
            LOSSES[code.loss],
            data,
            sparsity=budget.sparsity,
            support=budget.family,
            method=method,
            options=_options(budget, curvature, layers, choice, output),
            progress=shown.report,
        )
    settings = {"ridge": curvature.ridge, "seed": choice.seed}
    return finish(code, output, model, test, result, settings)


def _options(
    budget: BudgetChoice,
    curvature: CurvatureChoice,
    layers: LayerChoice,
    choice: StageChoice,
    output: NetworkOutput,
) -> StageOptions:
    return StageOptions(
        **shared_options(budget, curvature, layers, output),
        seed=choice.seed,
        time_limit=choice.time_limit,
        stages=choice.stages,
        schedule=choice.schedule,
        base=choice.base,
        checkpoint=choice.progress_file,
        resume=choice.resume,
    )


__all__ = ["run_staged"]
