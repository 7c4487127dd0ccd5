"""What artefacts ask for: conf/paper/<artefact>.yaml. With config.py the only module that
uses omegaconf."""

from dataclasses import fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from delving.groups import CONF, choices
from delving.schema import Arm, Request, Seeds
from delving.words import first_line, likeliest, nearest


def load_request(name: str) -> Request:
    """What an artefact asks for, conf/paper/<name>.yaml; ValueError for a typo in it."""
    known = choices("paper")
    if name not in known:
        raise ValueError(
            f"artefact {name!r}: choose from {', '.join(known)}{likeliest(name, known)}"
        )
    path = CONF / "paper" / f"{name}.yaml"
    try:
        tree = OmegaConf.merge(OmegaConf.structured(Request), OmegaConf.load(path))
        return _check_roles(OmegaConf.to_object(tree), path.name)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: {_explain_request(error)}") from error


def _check_roles(request: Request, file: str) -> Request:
    roles = [f.name for f in fields(Seeds)]
    for name, arm in request.runs.items():
        if arm.seeds not in roles:
            choose = f"choose from {', '.join(roles)}{likeliest(arm.seeds, roles)}"
            raise ValueError(f"{file}: runs.{name}.seeds: {arm.seeds!r}; {choose}")
    return request


def _explain_request(error: Exception) -> str:
    key, text = getattr(error, "full_key", None), first_line(error)
    if key and "not in" in text:
        known = [f.name for part in (Request, Arm) for f in fields(part)]
        return f"unknown key {key!r}{nearest(key.split('.')[-1], known)}"
    return f"{key}: {text}" if key and key not in text else text
