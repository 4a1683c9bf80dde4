"""Tasks that a service sends and a worker does: the customer goes along, signed.

    TASK_SECRET=… celery --app tasks worker
    TASK_SECRET=… python tasks.py cus_ada "summarise the sea"

Service and worker each have a ledger of their own, or one folder: a process never writes to another's file.
"""

from __future__ import annotations

import os
import sys

from celery import Celery
from llm_metering import Metering
from llm_metering.adapters.celery import carry_through_celery
from openai import OpenAI

app = Celery("tasks", broker=os.environ.get("CELERY_BROKER", "amqp://"))
if folder := os.environ.get("CELERY_BROKER_FOLDER"):  # kombu's broker of files, for trying it out
    app.conf.broker_transport_options = {
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": f"{folder}/control",
    }
app.conf.broker_connection_retry_on_startup = True

metering = Metering()
carry_through_celery(metering, os.environ["TASK_SECRET"])
openai = metering.wrap(OpenAI(), feature="tasks")


@app.task
def summarise(text: str) -> str:
    """Billed to whoever sent it, without being told who that is."""
    answer = openai.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": f"Summarise: {text}"}]
    )
    return answer.choices[0].message.content or ""


if __name__ == "__main__":
    customer, text = sys.argv[1:]
    # In a request under MeteringMiddleware the customer is known without this.
    with metering.bound(customer=customer):
        summarise.delay(text)
