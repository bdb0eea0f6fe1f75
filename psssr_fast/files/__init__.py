"""Files that are written, published and read safely in folders where other users may write."""

from psssr_fast.files.folder import Folder, NotRegular, is_plain_name, unlock
from psssr_fast.files.whole import appended, make_folders, open_input, path_to, whole_file

__all__ = [
    "Folder",
    "NotRegular",
    "appended",
    "is_plain_name",
    "make_folders",
    "open_input",
    "path_to",
    "unlock",
    "whole_file",
]
