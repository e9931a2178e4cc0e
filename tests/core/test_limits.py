"""Limits that pools share: who gets the next place, and that nobody starves.

A `Town` has several pools, each with a `House` (a World) of its own around it. The stories come
first; then any sequence of events at all, by a machine that knows what must hold at each moment.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.core.scenario import (
    EMPTY,
    TICK,
    FakeBackend,
    FakeClient,
    World,
    begin,
    done,
    query,
    ready,
    selected,
)
from tests.core.test_random import EXAMPLES
from txproxy.core import endings
from txproxy.core.backend import Backend
from txproxy.core.limits import PATIENCE, BackOff, Group
from txproxy.core.pool import Pool
from txproxy.core.session import Session


class House(World):
    """One pool of a town. `attempts` are the epochs of the connections that it waits for."""

    def __init__(self, town: "Town", database: str, user: str, **kind: object) -> None:
        super().__init__(**kind)
        self.pool.leave()
        self.attempts: list[int] = []
        self.database = town.group(database)
        self.user = town.group(user)
        own = replace(self.pool.settings, database=database, user=user, server_user=user)
        self.pool = Pool(own, self, self.database, self.user)

    def connect(self, pool: Pool) -> None:
        assert not pool.paused
        self.attempts.append(pool.epoch)

    def connects(self, number: int = 0) -> FakeBackend:
        backend = FakeBackend(self, dict(self.params))
        self.pool.connected(backend.backend, self.attempts.pop(number))
        return backend

    def refuses_connection(self, number: int = 0) -> None:
        self.pool.connect_failed({"C": "08001", "M": "no"}, self.attempts.pop(number))

    def admits(self) -> FakeClient:
        """A client that is logged in without a backend."""
        client = self.new_client()
        self.pool.accept(client.session.wanted, self.params)
        client.session.login()
        return client

    def asks(self) -> FakeClient:
        """A client that wants a backend."""
        client = self.admits()
        client.sends(query("SELECT 1"))
        return client

    def works(self, count: int = 1) -> list[FakeBackend]:
        """So many backends, each at work for a client of its own."""
        clients = [self.asks() for _ in range(count)]
        found = [self.connects() for _ in clients]
        assert all(client.session.backend is not None for client in clients)
        return found

    def rests(self, count: int = 1) -> list[FakeBackend]:
        """So many idle backends."""
        found = self.works(count)
        for backend in found:
            answer(backend)
        return found


class Town:
    """Pools, by database and user, with the groups that they share."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.houses: list[House] = []

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def house(self, database: str, user: str, **kind: object) -> House:
        house = House(self, database, user, **{"pool_size": 20, **kind})
        if self.houses:
            house.now = self.houses[0].now
        self.houses.append(house)
        return house

    def passes(self, seconds: float) -> None:
        """Time passes in all of them; then the janitor comes round."""
        for house in self.houses:
            house.now += seconds
        for house in self.houses:
            house.looks()

    @property
    def counts(self) -> list[int]:
        """How many connections each pool has."""
        return [house.pool.count for house in self.houses]


def two(limit: int, **kind: object) -> tuple[Town, House, House]:
    """Two users' pools of one database with so many connections in all."""
    town = Town()
    town.group("app").limit = limit
    return town, town.house("app", "ann", **kind), town.house("app", "bob", **kind)


def answer(backend: FakeBackend) -> None:
    """The server answers what it was asked first."""
    asked = backend.backend.fifo.exchanges[0].purpose
    backend.writes.clear()
    backend.says(EMPTY + ready() if asked == "check" else selected("1"))


def port(backend: Backend) -> FakeBackend:
    """The server's end."""
    assert isinstance(backend.port, FakeBackend)
    return backend.port


# The limit.


def test_a_limit_holds_for_all_pools_of_a_database_together() -> None:
    town, ann, bob = two(limit=3)
    for house in (ann, bob, ann, bob):
        house.asks()
    assert (len(ann.attempts), len(bob.attempts)) == (2, 1)
    assert repr(town.group("app")) == "<Group app 3/3 starving=1>"


def test_a_limit_holds_for_all_pools_of_a_user_together() -> None:
    town = Town()
    town.group("ann").limit = 1
    app, web = town.house("app", "ann"), town.house("web", "ann")
    app.asks()
    web.asks()
    assert town.counts == [1, 0]


def test_a_place_that_becomes_free_goes_to_who_waits_for_it() -> None:
    _, ann, bob = two(limit=1)
    (backend,) = ann.works()
    client = bob.asks()
    backend.dies()
    bob.connects()
    assert client.session.backend is not None


def test_a_place_that_a_failed_attempt_has_held_goes_to_who_waits_for_it() -> None:
    town, ann, bob = two(limit=1)
    ann.asks()
    bob.asks()
    ann.refuses_connection()
    assert town.counts == [0, 1]


def test_a_limit_that_is_raised_lets_pools_grow() -> None:
    town, ann, bob = two(limit=1)
    (backend,) = ann.works()
    bob.asks()
    town.group("app").limit = 2
    answer(backend)
    assert backend.is_idle()
    town.passes(TICK)
    assert town.counts == [1, 1]
    assert not town.group("app").starving


@pytest.mark.parametrize("name", ["app", "ann"])
def test_a_limit_that_is_lowered_closes_what_is_too_much_as_it_comes_back(name: str) -> None:
    town = Town()
    ann = town.house("app", "ann")
    works, rests = ann.works(2)
    answer(rests)
    town.group(name).limit = 1
    ann.pool.reconfigure(ann.pool.settings)
    assert rests.finished
    answer(works)
    assert works.is_idle()
    town.group(name).limit = 0
    assert not town.group(name).is_full()


def test_a_limit_that_is_lowered_closes_idle_backends_at_the_next_look() -> None:
    town, ann, _ = two(limit=0)
    idle = ann.rests(3)
    town.group("app").limit = 1
    town.passes(1)
    assert [backend.finished for backend in idle] == [True, True, False]


def test_a_pool_that_has_left_holds_nothing_in_its_groups() -> None:
    town, ann, bob = two(limit=1)
    ann.works()
    client = bob.asks()
    client.leaves()
    bob.pool.leave()
    assert not town.group("app").starving
    assert town.group("app").pools == {ann.pool}
    assert town.group("bob").unused
    assert not town.group("app").unused


def test_a_connection_that_comes_when_its_pool_has_left_is_closed() -> None:
    town, ann, _ = two(limit=1)
    client = ann.asks()
    client.leaves()
    ann.pool.leave()
    assert ann.connects().finished
    assert town.counts == [0, 0]
    assert town.group("app").connections == 0


# Idle backends first.


def test_an_idle_backend_of_another_pool_is_closed_for_who_waits() -> None:
    town, ann, bob = two(limit=2)
    first, second = ann.rests(2)
    bob.asks()
    assert first.finished
    assert not second.finished
    assert town.counts == [1, 1]
    assert ann.said("backend closed")[0]["why"] == "app/bob needs its place"


def test_as_many_are_closed_as_are_waited_for() -> None:
    town, ann, bob = two(limit=300, pool_size=300)
    ann.rests(300)
    for _ in range(290):
        bob.asks()
    assert town.counts == [299, 1]
    town.passes(PATIENCE + 0.01)
    assert town.counts == [10, 290]


def test_the_backend_that_has_been_idle_longest_is_closed() -> None:
    town, ann, bob = two(limit=2)
    eve = town.house("app", "eve")
    (newer,) = ann.works()
    (older,) = bob.rests()
    town.passes(1)
    answer(newer)
    eve.asks()
    assert older.finished
    assert not newer.finished


def test_who_has_backends_of_his_own_waits_a_moment_before_others_lose_theirs() -> None:
    town, ann, bob = two(limit=2)
    ann.works()
    (busy,) = bob.works()
    ann.asks()
    answer(busy)
    town.passes(PATIENCE / 2)
    assert town.counts == [1, 1]
    town.passes(PATIENCE / 2 + 0.01)
    assert busy.finished
    assert town.counts == [2, 0]


def test_a_backend_that_has_been_idle_for_a_while_is_not_waited_for() -> None:
    town, ann, bob = two(limit=2)
    ann.works()
    (idle,) = bob.rests()
    town.passes(PATIENCE + 0.01)
    ann.asks()
    assert idle.finished


def test_min_pool_size_is_left_to_a_pool_unless_another_has_nothing() -> None:
    town, ann, bob = two(limit=3)
    eve = town.house("app", "eve", min_pool_size=1)
    (kept,) = eve.rests()
    ann.works(2)
    town.passes(10)
    ann.asks()
    town.passes(1)
    assert kept.is_idle()
    bob.asks()
    assert kept.finished
    assert town.counts == [2, 1, 0]


def test_a_backend_above_min_pool_size_goes_first() -> None:
    town, ann, bob = two(limit=2)
    eve = town.house("app", "eve", min_pool_size=1)
    (kept,) = eve.rests()
    town.passes(10)
    (surplus,) = ann.rests()
    bob.asks()
    assert surplus.finished
    assert kept.is_idle()


def test_a_backend_that_has_just_become_idle_goes_too_if_another_pool_has_nothing() -> None:
    town, ann, bob = two(limit=1, min_pool_size=1)
    (backend,) = ann.rests()
    bob.asks()
    assert backend.finished
    assert town.counts == [0, 1]


def test_min_pool_size_takes_no_place_from_others() -> None:
    town, ann, _ = two(limit=1)
    town.house("app", "eve", min_pool_size=1)
    (idle,) = ann.rests()
    town.passes(5)
    assert idle.is_idle()
    assert town.counts == [1, 0, 0]


# All are busy.


def test_who_has_nothing_gets_the_place_of_a_backend_that_comes_back() -> None:
    town, ann, bob = two(limit=2)
    first, second = ann.works(2)
    queued = ann.asks()
    client = bob.asks()
    answer(first)
    assert first.finished
    assert town.counts == [1, 1]
    assert queued.session.queued
    bob.connects()
    assert client.session.backend is not None
    answer(second)
    assert queued.session.backend is second.backend


def test_nobodys_transaction_is_cut_short() -> None:
    town, ann, bob = two(limit=1)
    (backend,) = ann.rests()
    client = ann.admits()
    begin(client, backend)
    bob.asks()
    client.sends(query("SELECT 1"))
    backend.says(selected("1", "T"))
    assert town.counts == [1, 0]
    client.sends(query("COMMIT"))
    backend.says(done("COMMIT"), ready())
    assert town.counts == [0, 1]


def test_who_waits_no_more_gets_nothing() -> None:
    town, ann, bob = two(limit=2)
    backend, _ = ann.works(2)
    bob.asks().leaves()
    answer(backend)
    assert backend.is_idle()
    assert town.counts == [2, 0]


def test_a_difference_of_one_stays() -> None:
    town, ann, bob = two(limit=5)
    mine = ann.works(3)
    bob.works(2)
    ann.asks()
    for _ in range(5):
        bob.asks()
    for _ in range(20):
        town.passes(1)
        answer(mine[0])
        ann.asks()
    assert town.counts == [3, 2]
    assert not ann.said("backend closed")


def test_a_pool_gives_no_more_than_is_fair() -> None:
    town, ann, bob = two(limit=6)
    mine = ann.works(5)
    bob.works()
    for _ in range(9):
        ann.asks()
        bob.asks()
    for backend in mine:
        answer(backend)
    assert town.counts == [3, 3]


def test_of_those_who_have_some_the_one_with_the_fewest_is_next() -> None:
    town, ann, bob = two(limit=11)
    eve, joe = town.house("app", "eve"), town.house("app", "joe")
    mine = ann.works(7)
    for house, count in ((bob, 1), (eve, 1), (joe, 2)):
        house.works(count)
    for house in (joe, bob, eve, joe):
        house.asks()
    for backend, counts in zip(mine, ([6, 2, 1, 2], [5, 2, 2, 2], [4, 2, 2, 3]), strict=False):
        answer(backend)
        assert town.counts == counts


def test_who_cannot_grow_for_another_reason_gets_nothing() -> None:
    town, ann, bob = two(limit=3, pool_size=2)
    mine = ann.works(2)
    bob.works()
    bob.asks()
    bob.database.pause()
    bob.database.resume()
    bob.pool.reconfigure(replace(bob.pool.settings, pool_size=1))
    answer(mine[0])
    assert mine[0].is_idle()
    assert town.counts == [2, 1]


def test_who_waits_for_the_pause_after_a_failure_gets_nothing_meanwhile() -> None:
    town, ann, bob = two(limit=2)
    mine = ann.works(2)
    bob.asks()
    answer(mine[0])
    bob.refuses_connection()
    bob.asks()
    mine += ann.works()
    answer(mine[1])
    assert mine[1].is_idle()
    town.passes(0.11)
    assert town.counts == [1, 1]


# More pools than places.


def test_among_those_who_have_nothing_the_longest_waiter_is_next() -> None:
    town, ann, bob = two(limit=1)
    eve = town.house("app", "eve")
    (backend,) = ann.works()
    town.passes(1)
    bob.asks()
    town.passes(1)
    eve.asks()
    town.passes(1)
    ann.asks()
    answer(backend)
    assert town.counts == [0, 1, 0]
    answer(bob.connects())
    assert town.counts == [0, 0, 1]
    answer(eve.connects())
    assert town.counts == [1, 0, 0]


def test_who_has_waited_longer_keeps_the_last_backend() -> None:
    town, ann, bob = two(limit=1)
    (backend,) = ann.works()
    queued = ann.asks()
    town.passes(1)
    bob.asks()
    answer(backend)
    assert queued.session.backend is backend.backend
    answer(backend)
    assert town.counts == [0, 1]


# Both limits.


def both() -> tuple[Town, House, House, House]:
    """ann's pools of two databases, and bob's of one: three places for `app`, two for ann."""
    town = Town()
    town.group("app").limit = 3
    town.group("ann").limit = 2
    return town, town.house("app", "ann"), town.house("app", "bob"), town.house("web", "ann")


def test_who_lacks_a_place_twice_is_served_though_both_others_are_always_busy() -> None:
    town, needy, bob, web = both()
    bobs, webs = bob.works(3), web.works(2)
    for _ in range(3):
        bob.asks()
        web.asks()
    town.passes(1)
    needy.asks()
    town.passes(1)
    answer(bobs[0])
    assert bobs[0].finished
    assert town.counts == [0, 2, 2]
    assert town.group("app").claimant is needy.pool
    assert town.group("app").is_full()
    answer(bobs[1])
    assert not bobs[1].finished  # one place is enough
    answer(webs[0])
    assert town.counts == [1, 2, 1]
    assert town.group("app").claimant is None


def test_a_place_is_kept_for_one_at_a_time() -> None:
    town, needy, bob, web = both()
    town.group("eve").limit = 1
    other, eves = town.house("app", "eve"), town.house("web", "eve")
    bob.works()
    web.works(2)
    eves.works()
    needy.asks()
    other.asks()
    assert town.group("app").claimant is needy.pool


def test_who_has_some_and_lacks_a_place_twice_takes_none_in_vain() -> None:
    town, needy, bob, web = both()
    town.group("app").limit = 4
    needy.works()
    bobs = bob.works(3)
    web.works()
    needy.asks()
    answer(bobs[0])
    assert town.counts == [1, 3, 1]
    bobs[1].dies()
    town.passes(TICK)
    assert town.group("app").claimant is None
    assert town.counts == [1, 2, 1]


def test_a_place_that_is_kept_is_free_again_when_nobody_waits_for_it() -> None:
    town, needy, bob, web = both()
    bob.works(2)
    web.works(2)
    client = needy.asks()
    bob.asks()
    assert town.group("app").claimant is needy.pool
    assert town.counts == [0, 2, 2]
    client.leaves()
    town.passes(TICK)
    town.passes(TICK)
    assert town.counts == [0, 3, 2]


def test_idle_backends_in_both_groups_are_closed_together() -> None:
    town, needy, bob, web = both()
    bobs, webs = bob.rests(3), web.rests(2)
    needy.asks()
    assert (bobs[0].finished, webs[0].finished) == (True, True)
    assert town.counts == [1, 2, 1]


def test_an_idle_backend_is_not_closed_in_vain() -> None:
    town, needy, bob, web = both()
    bobs, _ = bob.rests(3), web.works(2)
    needy.asks()
    assert not any(backend.finished for backend in bobs)
    assert town.counts == [0, 3, 2]


# PAUSE.


def test_a_pause_of_a_database_is_one_of_all_its_pools() -> None:
    town, ann, bob = two(limit=0)
    idle = [*ann.rests(), *bob.rests()]
    town.group("app").pause()
    assert all(backend.finished for backend in idle)
    assert repr(town.group("app")) == "<Group app 0/0 starving=0 paused>"
    ann.asks()
    bob.asks()
    assert town.counts == [0, 0]
    town.group("app").resume()
    assert town.counts == [1, 1]


def test_a_group_that_is_paused_disabled_or_has_clients_is_not_forgotten() -> None:
    paused, disabled, used = Group("app"), Group("web"), Group("ann")
    paused.pause()
    disabled.disabled = True
    used.clients = 1
    assert not any(group.unused for group in (paused, disabled, used))
    assert Group("log").unused


# After a failure.


def test_attempts_that_fail_together_are_one_failure() -> None:
    pause = BackOff()
    for _ in range(5):
        pause.failed(now=10.0, longest=2.0)
    assert pause.pause == 0.1
    assert not pause.allows(now=10.05, attempts=0)
    assert pause.allows(now=10.11, attempts=0)
    assert not pause.allows(now=10.11, attempts=1)


def test_there_is_a_pause_even_if_none_is_asked_for() -> None:
    pause = BackOff()
    assert pause.allows(now=0.0, attempts=5)
    pause.failed(now=10.0, longest=0.0)
    assert pause.pause == 0.1
    pause.reset()
    assert pause.allows(now=10.0, attempts=5)
    pause.failed(now=10.0, longest=0.0)
    assert not pause.allows(now=10.0, attempts=0)


# Fairness in the long run.


class Crowd(Town):
    """Users of one database whose clients ask again as soon as they are answered."""

    def __init__(self, limit: int, users: int, clients: int) -> None:
        super().__init__()
        self.group("app").limit = limit
        for number in range(users):
            self.house("app", f"user{number}")
        self.clients = [
            (house, client)
            for house in self.houses
            for client in [house.admits() for _ in range(clients)]
        ]
        self.served = [0 for _ in self.clients]
        self.opened = 0

    def asking(self) -> None:
        for _, client in self.clients:
            if client.session.backend is None and not client.session.queued:
                client.sends(query("SELECT 1"))

    def round(self, dice: Random) -> None:
        """Every connection that is wanted is made and every statement ends, in some order."""
        self.asking()
        for number in dice.sample(range(len(self.clients)), len(self.clients)):
            house, client = self.clients[number]
            while house.attempts:
                house.connects()
                self.opened += 1
            backend = client.session.backend
            if backend is not None:
                answer(port(backend))
                self.served[number] += 1
            self.asking()
            assert sum(self.counts) <= self.group("app").limit
        self.passes(TICK)


QUICK = settings(
    max_examples=int(EXAMPLES or 25),
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@QUICK
@given(
    limit=st.integers(1, 8),
    users=st.integers(1, 8),
    more=st.integers(1, 3),
    dice=st.randoms(use_true_random=False),
)
def test_pools_that_always_have_waiters_end_up_with_even_shares(
    limit: int, users: int, more: int, dice: Random
) -> None:
    crowd = Crowd(limit, min(users, limit), clients=limit + more)
    for _ in range(3 * limit):
        crowd.round(dice)
    assert sum(crowd.counts) == limit
    assert max(crowd.counts) - min(crowd.counts) <= 1
    opened = crowd.opened
    for _ in range(5):
        crowd.round(dice)
    assert crowd.opened == opened  # and then they keep what they have


@QUICK
@given(
    limit=st.integers(1, 4),
    more=st.integers(1, 4),
    clients=st.integers(1, 3),
    dice=st.randoms(use_true_random=False),
)
def test_where_there_are_more_pools_than_places_nobody_starves(
    limit: int, more: int, clients: int, dice: Random
) -> None:
    crowd = Crowd(limit, limit + more, clients)
    for _ in range(5):
        crowd.round(dice)
    served = list(crowd.served)
    for _ in range(5 * len(crowd.clients)):
        crowd.round(dice)
    gained = [after - before for before, after in zip(served, crowd.served, strict=True)]
    assert min(gained) >= 2


# Any sequence of events.


class Machine(RuleBasedStateMachine):
    """Two databases and two users, whose four pools share limits crosswise."""

    @initialize(
        limits=st.tuples(*[st.integers(0, 4)] * 4), sizes=st.tuples(*[st.integers(1, 4)] * 4)
    )
    def set_up(self, limits: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        self.town = Town()
        for name, limit in zip(("app", "web", "ann", "bob"), limits, strict=True):
            self.town.group(name).limit = limit
        for (database, user), size in zip(
            product(("app", "web"), ("ann", "bob")), sizes, strict=True
        ):
            self.town.house(
                database,
                user,
                pool_size=size,
                server_login_retry=0.4,
                server_check_delay=3.0,
                server_idle_timeout=20.0,
                server_lifetime=60.0,
                reserve_pool_timeout=2.0,
                query_wait_timeout=30.0,
            )
        self.clients = [(house, house.admits()) for house in self.town.houses for _ in range(5)]
        self.queues: dict[Pool, list[Session]] = {house.pool: [] for house in self.town.houses}
        self.most = dict.fromkeys(self.town.groups.values(), 0)
        self.largest = {house.pool: 0 for house in self.town.houses}

    # What can happen.

    @rule(number=st.integers(0, 19))
    def asks(self, number: int) -> None:
        _, client = self.clients[number]
        session = client.session
        if session.backend is None and not session.queued and not client.finished:
            client.sends(query("SELECT 1"))

    @rule(number=st.integers(0, 19))
    def is_in_a_transaction(self, number: int) -> None:
        """What the server answers says that a transaction is open; or it is committed."""
        _, client = self.clients[number]
        backend = client.session.backend
        if backend is None or backend.settling:
            return
        if backend.fifo.exchanges:
            port(backend).writes.clear()
            backend.server_sent(selected("1", "T"))
        else:
            client.sends(query("COMMIT"))

    @rule(number=st.integers(0, 19))
    def gives_up(self, number: int) -> None:
        _, client = self.clients[number]
        if client.session.queued:
            endings.cancel(client.session)

    @rule(number=st.integers(0, 99))
    def answers(self, number: int) -> None:
        busy = self.backends(lambda backend: bool(backend.fifo.exchanges))
        if busy:
            answer(busy[number % len(busy)])

    @rule(number=st.integers(0, 99))
    def connects(self, number: int) -> None:
        for house, attempt in self.attempt(number):
            house.connects(attempt)

    @rule(number=st.integers(0, 99))
    def is_refused(self, number: int) -> None:
        for house, attempt in self.attempt(number):
            house.refuses_connection(attempt)

    @rule(number=st.integers(0, 99))
    def dies(self, number: int) -> None:
        living = self.backends(lambda backend: True)
        if living:
            living[number % len(living)].dies()

    @rule(number=st.integers(0, 99))
    def is_stale(self, number: int) -> None:
        living = self.backends(lambda backend: True)
        if living:
            living[number % len(living)].stale = True

    @rule(seconds=st.sampled_from([TICK, TICK, 0.5, 1.0, 4.0, 25.0]))
    def passes(self, seconds: float) -> None:
        self.town.passes(seconds)
        for house in self.town.houses:
            pool = house.pool
            room = not (house.database.is_full(pool) or house.user.is_full(pool))
            assert not (room and pool.lacks()), pool

    @rule(name=st.sampled_from(["app", "web", "ann", "bob"]), limit=st.integers(0, 4))
    def is_limited(self, name: str, limit: int) -> None:
        group = self.town.group(name)
        group.limit = limit
        for pool in group.pools:
            pool.adapt()

    @rule(name=st.sampled_from(["app", "web", "ann", "bob"]))
    def pauses(self, name: str) -> None:
        group = self.town.group(name)
        if group.paused:
            group.resume()
        else:
            group.pause()

    @rule(
        number=st.integers(0, 3),
        size=st.integers(1, 4),
        least=st.integers(0, 2),
        reserve=st.integers(0, 2),
    )
    def is_reconfigured(self, number: int, size: int, least: int, reserve: int) -> None:
        pool = self.town.houses[number].pool
        pool.reconfigure(
            replace(pool.settings, pool_size=size, min_pool_size=least, reserve_pool_size=reserve)
        )

    @rule(number=st.integers(0, 3), elsewhere=st.booleans())
    def reconnects(self, number: int, elsewhere: bool) -> None:
        pool = self.town.houses[number].pool
        if elsewhere:
            pool.reconfigure(replace(pool.settings, port=pool.settings.port + 1))
        else:
            pool.reconnect()

    def backends(self, which: Callable[[Backend], bool]) -> list[FakeBackend]:
        found = [
            backend
            for house in self.town.houses
            for backend in sorted(house.pool.backends, key=lambda backend: backend.id)
            if which(backend)
        ]
        return [port(backend) for backend in found]

    def attempt(self, number: int) -> list[tuple[House, int]]:
        """One of the attempts under way, if there are any."""
        found = [(house, i) for house in self.town.houses for i in range(len(house.attempts))]
        return [found[number % len(found)]] if found else []

    # What holds at each moment.

    @invariant()
    def counts_add_up(self) -> None:
        for house in self.town.houses:
            assert house.pool.connecting == len(house.attempts)
        for group in self.town.groups.values():
            assert group.connections == sum(pool.count for pool in group.pools)

    @invariant()
    def limits_hold(self) -> None:
        for group in self.town.groups.values():
            taken = group.connections
            assert not group.limit or taken <= max(group.limit, self.most[group]), group
            self.most[group] = taken
        for house in self.town.houses:
            pool = house.pool
            allowed = pool.size + pool.settings.reserve_pool_size
            assert pool.count <= max(allowed, self.largest[pool]), pool
            self.largest[pool] = pool.count

    @invariant()
    def each_backend_is_in_one_place(self) -> None:
        for house in self.town.houses:
            pool = house.pool
            lent = [client.session.backend for of, client in self.clients if of is house]
            held = [backend for backend in lent if backend is not None]
            assert len({*held, *pool.idle}) == len(held) + len(pool.idle)
            assert pool.backends >= {*held, *pool.idle}
            for backend in pool.idle:
                assert backend.is_clean()
                assert backend.session is None
                assert not backend.closed
            since = [backend.idle_since for backend in pool.idle]
            assert since == sorted(since)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        for house in self.town.houses:
            pool = house.pool
            assert not (pool.waiters and pool.idle)
            assert not (pool.paused and pool.idle)
            for group in (house.database, house.user):
                assert pool.starved or group.claimant is not pool
            starving = pool in house.database.starving or pool in house.user.starving
            assert pool.starved == starving

    @invariant()
    def the_longest_waiter_is_first(self) -> None:
        """Of those who waited, whoever has a backend now was ahead of whoever still waits."""
        for pool, queue in self.queues.items():
            now = list(pool.waiters)
            stay = [session for session in queue if session in now]
            assert now[: len(stay)] == stay
            if stay:
                behind = queue[queue.index(stay[0]) :]
                assert not any(session.backend for session in behind)
            self.queues[pool] = now

    def teardown(self) -> None:
        """When servers and people behave again, everybody is served."""
        if not hasattr(self, "town"):
            return
        for group in self.town.groups.values():
            group.resume()
        for _ in range(200):
            self.town.passes(TICK)
            for house in self.town.houses:
                while house.attempts:
                    house.connects()
            for backend in self.backends(lambda backend: backend.session is not None):
                session = backend.backend.session
                if session is not None and not backend.backend.fifo.exchanges:
                    session.client_sent(query("COMMIT"))
            for backend in self.backends(lambda backend: bool(backend.fifo.exchanges)):
                answer(backend)
        for house, client in self.clients:
            assert client.session.backend is None
            assert not client.session.queued, (house.pool, house.database, house.user)


TestMachine = Machine.TestCase
TestMachine.settings = settings(QUICK, max_examples=int(EXAMPLES or 60), stateful_step_count=60)
