"""Start in a folder: find where a run resumes, and make the folder this run's."""

from dynsparse.training.resume.ownership import begun_by, checkpoints_of, require_writable
from dynsparse.training.resume.point import ResumePoint, find_resume_point, is_finished
from dynsparse.training.resume.taking import differences, take_folder

__all__ = [
    "ResumePoint",
    "begun_by",
    "checkpoints_of",
    "differences",
    "find_resume_point",
    "is_finished",
    "require_writable",
    "take_folder",
]
