"""Courses and their lessons."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Base of the models."""


# Models inherit from Base, not from db.Model, which type checkers cannot follow.
db = SQLAlchemy(model_class=Base)


class Course(Base):
    """A course: an ordered list of lessons."""

    __tablename__ = "course"

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]
    level: Mapped[str]
    summary: Mapped[str]
    lessons: Mapped[list[Lesson]] = relationship(
        back_populates="course", order_by="Lesson.position", lazy="selectin"
    )


class Lesson(Base):
    """One lesson of a course; its position counts from 1."""

    __tablename__ = "lesson"
    __table_args__ = (UniqueConstraint("course_id", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    course_id: Mapped[int] = mapped_column(ForeignKey("course.id"))
    position: Mapped[int]
    title: Mapped[str]
    body: Mapped[str]
    course: Mapped[Course] = relationship(back_populates="lessons")

    @property
    def blocks(self) -> list[str]:
        """Return the body's paragraphs; one that starts with four spaces is code."""
        return self.body.strip("\n").split("\n\n")
