"""`ms-omni download`: fetch a model by its name, to the hub's cache or to a folder."""

from pathlib import Path

from ..hub import HUBS

NAME = "download"
HELP = "Download a model from a hub, by its name; what broke off is continued."


def add_arguments(parser):
    parser.add_argument("name", help="OWNER/NAME, such as Qwen/Qwen3-Omni-30B-A3B-Instruct (about 70 GB)")
    parser.add_argument("--local-dir", type=Path, metavar="DIR", help="folder for the files (default: the hub's cache)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit (default: the hub's own)")
    parser.add_argument("--hub", choices=HUBS, help="where from (default: MS_OMNI_HUB, else huggingface)")


def run(arguments):
    from ..config import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerConfig, read_config_json
    from ..errors import InputError
    from ..hub import is_name, missing_folder
    from ..hub.download import fetch

    def check(folder):
        kind = Qwen3OmniMoeConfig if "thinker_config" in read_config_json(folder)[0] else Qwen3OmniMoeThinkerConfig
        kind.from_pretrained(folder)

    if Path(arguments.name).expanduser().is_dir():
        raise InputError(f"{arguments.name} is a folder on this machine already; nothing to download")
    if not is_name(arguments.name):
        raise missing_folder(arguments.name)
    print(fetch(arguments.name, local_dir=arguments.local_dir, revision=arguments.revision, hub=arguments.hub, check=check))
