"""The pages of the learning management system, and how its errors look."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, current_app, render_template, request
from sqlalchemy import select
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from example_app.models import Course, Lesson, db
from flask_workersize import WorkerSizeConfigError, get_plan

blueprint = Blueprint("pages", __name__)


def init_app(app: Flask) -> None:
    """Add the pages and the error pages to the app."""
    app.register_blueprint(blueprint)
    app.register_error_handler(HTTPException, show_error)


def wants_html() -> bool:
    """Return whether the client is a browser, rather than curl or a load generator."""
    best = request.accept_mimetypes.best_match(["application/json", "text/html"])
    return best == "text/html"


def plan_context() -> dict[str, Any]:
    """Return what ``_plan.html`` shows: the plan, or the reason why there is none."""
    context: dict[str, Any] = {
        "plan": None,
        "plan_error": None,
        "health_url": current_app.config.get("WORKERSIZE_HEALTH_URL", "/_health/capacity"),
    }
    try:
        context["plan"] = get_plan(current_app)
    except WorkerSizeConfigError as error:
        context["plan_error"] = str(error)
    return context


def show_error(error: HTTPException) -> Response | HTTPException:
    """Return an error as a page for a browser and as one line of text for other clients."""
    if error.response is not None:
        return error
    # Starting from the error's own response keeps headers such as Allow.
    response = Response.force_type(error.get_response(request.environ))
    if wants_html():
        response.set_data(render_template("error.html", error=error))
    else:
        response.set_data(f"{error.description}\n")
        response.mimetype = "text/plain"
    response.vary.add("Accept")
    return response


@blueprint.get("/")
def home() -> str:
    """Show the list of courses."""
    courses = db.session.scalars(select(Course).order_by(Course.id)).all()
    return render_template("home.html", courses=courses, **plan_context())


@blueprint.get("/courses/<slug>")
def course(slug: str) -> str:
    """Show a course and its lessons."""
    found = db.one_or_404(
        select(Course).filter_by(slug=slug), description="There is no such course."
    )
    return render_template("course.html", course=found)


@blueprint.get("/courses/<slug>/<int:position>")
def lesson(slug: str, position: int) -> str:
    """Show a lesson, with the ways to the one before and the one after."""
    found = db.one_or_404(
        select(Lesson).join(Course).where(Course.slug == slug, Lesson.position == position),
        description="There is no such lesson.",
    )
    return render_template("lesson.html", lesson=found, course=found.course)
