"""Whose model and whose data: from the card that lies beside a checkpoint."""

from pathlib import Path

from huggingface_hub import ModelCard

_METHOD = (
    "Method: Wyatt, Clark and Voiculescu, *Reg4Pru: Regularisation Through Random Token Routing for Token Pruning*, "
    "[arXiv 2602.02163](https://arxiv.org/abs/2602.02163)."
)


def attribution(checkpoint: Path) -> str:
    """
    Markdown with the name of the model, its licence, its base model and its data.

    Args:
        checkpoint (`Path`): Folder of the checkpoint; without a `README.md` in it, this is said.
    """
    path = checkpoint / "README.md"
    if not path.is_file():
        return f"This checkpoint has no card that states its data and licence. {_METHOD}"
    data = ModelCard.load(path).data.to_dict()
    facts = {"Licence": data.get("license"), "built on": data.get("base_model"), "trained on": data.get("datasets")}
    parts = [f"{name}: {_listed(value)}" for name, value in facts.items() if value]
    name = data.get("model-index", [{}])[0].get("name") if data.get("model-index") else None
    return f"{'Model: ' + name + '. ' if name else ''}{'; '.join(parts)}{'. ' if parts else ''}{_METHOD}"


def _listed(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
