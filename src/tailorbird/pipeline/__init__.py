"""The stages in order, resumable; shared by the command line and Python users."""

from tailorbird.pipeline.execute import execute
from tailorbird.pipeline.fitting import Student
from tailorbird.pipeline.job import Job, Until
from tailorbird.pipeline.model_house import ModelHouse

__all__ = ["Job", "ModelHouse", "Student", "Until", "execute"]
