"""The users of a Locust run, one class for each way that people and programs ask."""

from __future__ import annotations

import random
from itertools import count

from locust import User, between, constant, task
from locust.env import Environment

from load.gevent_chat import Chat
from load.locust_metrics import record
from load.locust_options import options_of
from load.scene import Scene
from load.types import Message, Planned


class ChatUser(User):
    """Somebody with one connection, one tenant's key and a session of their own, who waits for each answer."""

    abstract = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.scene = Scene.of(options_of(environment), self.host or "")
        self.tenant = random.choice(self.scene.tenants)
        self._chat = Chat(self.scene.target)
        self._numbers = count()

    def on_stop(self) -> None:
        """Give the connection up."""
        self._chat.close()

    def ask(
        self,
        *messages: Message,
        output_tokens: int,
        stream: bool = False,
        session: str | None = None,
        service_tier: str | None = None,
    ) -> str | None:
        """Send a chat and write down what came of it; the answer's text, or None where no whole answer came."""
        sort = self.scene.sort(self.tenant)
        planned = Planned(
            number=next(self._numbers),
            due_s=0.0,
            kind=type(self).__name__,
            model=self.scene.model,
            messages=messages,
            output_tokens=output_tokens,
            tenant=self.tenant.name,
            session=session if self.scene.target.terms else None,
            service_tier=service_tier or sort.service_tier,
            stream=stream,
            exact=False,
            terms=sort.terms,
        )
        outcome, text = self._chat.send(planned)
        record(self.environment, outcome)
        return text if outcome.answered else None


class ShortChat(ChatUser):
    """A short question, and a short answer that comes whole."""

    weight = 4
    wait_time = between(0.5, 2.0)

    @task
    def question(self) -> None:
        """Ask."""
        self.ask(self.scene.question(random.randint(10, 60)), output_tokens=32)


class LongPrompt(ChatUser):
    """A document that fills about half of the context, and a short answer that is streamed."""

    weight = 1
    wait_time = between(1.0, 4.0)

    @task
    def document(self) -> None:
        """Ask about it."""
        context = self.scene.context
        self.ask(self.scene.question(random.randint(context // 3, context // 2)), output_tokens=48, stream=True)


class Streaming(ChatUser):
    """A short question, and a longer answer that is read as it comes."""

    weight = 2
    wait_time = between(0.5, 2.0)

    @task
    def question(self) -> None:
        """Ask, and read."""
        self.ask(self.scene.question(random.randint(20, 80)), output_tokens=128, stream=True)


class MultiTurn(ChatUser):
    """A conversation: everybody's begins with the same instructions, and each turn repeats all that was said before.

    When the context has no room for another turn, or an answer failed, the next conversation begins.
    """

    weight = 2
    wait_time = between(1.0, 3.0)
    _ANSWER = 64

    def on_start(self) -> None:
        """Begin the first conversation."""
        self._conversations = count()
        self._begin()

    @task
    def turn(self) -> None:
        """Say the next thing."""
        question = self.scene.question(random.randint(15, 50))
        if self.scene.tokens_max(*self._said, question) + self._ANSWER > self.scene.context:
            self._begin()
        answer = self.ask(*self._said, question, output_tokens=self._ANSWER, stream=True, session=self._session)
        if answer is None:
            self._begin()
        else:
            self._said += [question, Message(role="assistant", content=answer)]

    def _begin(self) -> None:
        self._session = f"loadtest-{id(self):x}-{next(self._conversations)}"
        self._said = [self.scene.instructions()]


class FlexBatch(ChatUser):
    """A batch job: one request after the other in OpenAI's tier ``flex``, which may wait for everybody else."""

    weight = 1
    wait_time = constant(0)

    @task
    def item(self) -> None:
        """The next of the batch."""
        self.ask(self.scene.question(random.randint(60, 200)), output_tokens=64, service_tier="flex")
