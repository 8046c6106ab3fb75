"""The triggers of the function app: each decodes what the host gives and calls one handler.

The host imports this to learn what there is, before anything can run: what takes long to load is
imported by the function that needs it.
"""
# ruff: noqa: PLC0415 - see above

import asyncio
import logging
import typing
from functools import cache

import azure.functions as func

from scoring.adapters.environment import environment
from scoring.settings import HostSettings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""All that a client may try: it is the API that refuses, in its own words."""

HOST = HostSettings.load(environment())
for doubt in HOST.doubts:
    logging.getLogger("scoring.hosted").warning("settings.doubt", extra={"cause": doubt})

app = func.FunctionApp(http_auth_level=func.AuthLevel(HOST.auth_level))


@app.event_hub_message_trigger(
    arg_name="events",
    event_hub_name="%EVENT_HUB_NAME%",
    consumer_group="%EVENT_HUB_CONSUMER_GROUP%",
    connection="EVENT_HUB",
    cardinality=func.Cardinality.MANY,
    # Without it the host reads the bodies itself, and one that is no JSON fails the whole batch.
    data_type=func.DataType.BINARY,
)
# Unbounded: once retries are spent the host moves its checkpoint all the same.
@app.retry(strategy="fixed_delay", max_retry_count="-1", delay_interval="00:00:05")
def ingest_readings(
    # With `list` the worker loads no function at all.
    events: typing.List[func.EventHubEvent],  # noqa: UP006
) -> None:
    """Apply an event batch, once however often it comes."""
    from scoring.adapters.event_hub.trigger import trigger_batch
    from scoring.hosting import hosted_app

    hosted_app().ingest_events(trigger_batch(events, HOST.hub))


@app.timer_trigger(arg_name="timer", schedule="%REPAIR_SCHEDULE%", use_monitor=True)
def repair_gaps(timer: func.TimerRequest) -> None:
    """Read again what the host skipped."""
    from scoring.hosting import hosted_app

    hosted_app().repair(past_due=timer.past_due)


@app.timer_trigger(arg_name="timer", schedule="%SUBMIT_SCHEDULE%", use_monitor=True)
def submit_scoring_run(timer: func.TimerRequest) -> None:
    """Make a run of what is final and pending, if anything is."""
    from scoring.hosting import hosted_app

    hosted_app().submit_pending(past_due=timer.past_due)


@app.timer_trigger(arg_name="timer", schedule="%WATCH_SCHEDULE%", use_monitor=True)
def watch_runs(timer: func.TimerRequest) -> None:
    """Bring every active run as far as it can come now."""
    from scoring.hosting import hosted_app

    hosted_app().watch_active(past_due=timer.past_due)


@app.blob_trigger(
    arg_name="blob",
    # The name of a finished part, and of no draft of one.
    path="%SCORING_CONTAINER%/predictions/{run}/part-{number}.parquet",
    connection="STORAGE",
    source=func.BlobSource(HOST.blob_source),
)
def index_predictions(blob: func.InputStream) -> None:
    """Index a prediction part."""
    from scoring.hosting import hosted_app

    hosted_app().index_blob(str(blob.name))


@app.route(route="api/{*route}", methods=METHODS)
async def api(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Answer a request by the HTTP API."""
    # Building it takes a second, which the worker's event loop has not.
    middleware = await asyncio.to_thread(_middleware)
    response: func.HttpResponse = await middleware.handle_async(req, context)
    return response


@cache
def _middleware() -> func.AsgiMiddleware:
    from scoring.api import create_api
    from scoring.hosting import hosted_app

    return func.AsgiMiddleware(create_api(hosted_app()))  # type: ignore[no-untyped-call]
