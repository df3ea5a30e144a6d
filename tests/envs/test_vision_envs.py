"""Vision: what was drawn is what is asked, and the picture shows it."""

import io

import pytest

pillow = pytest.importorskip("PIL.Image")

from agentenv.envs.chart_read.env import ChartRead  # noqa: E402
from agentenv.envs.count_shapes.env import CountShapes  # noqa: E402
from agentenv.messages import Message  # noqa: E402
from agentenv.picture import missing_pillow, png  # noqa: E402


def picture_of(env):
    message: Message = env.conversation[0]
    (image,) = message.images
    return pillow.open(io.BytesIO(image.data))


@pytest.mark.parametrize(("difficulty", "side"), [(1, 3), (3, 5), (5, 7)])
def test_the_picture_holds_as_many_patches_of_the_colour_as_the_answer_says(difficulty, side):
    env = CountShapes(difficulty=difficulty)
    for seed in range(5):
        env.reset(seed=seed)
        picture = picture_of(env)
        assert picture.size == (56 * side, 56 * side)
        colour = env.question.prompt.split()[2]
        wanted = pillow.new("RGB", (1, 1), colour).getpixel((0, 0))
        # shapes never leave their place, so every place that shows the colour is one shape
        places = [
            picture.crop((56 * x, 56 * y, 56 * (x + 1), 56 * (y + 1))).getcolors(4000)
            for y in range(side)
            for x in range(side)
        ]
        found = sum(any(value == wanted for _, value in colours) for colours in places)
        assert found == sum(map(int, env.question.answer.split(", ")))


@pytest.mark.parametrize(("difficulty", "num_bars"), [(1, 4), (2, 5), (5, 10)])
def test_the_bars_are_as_high_as_the_answer_says(difficulty, num_bars):
    env = ChartRead(difficulty=difficulty)
    for seed in range(5):
        env.reset(seed=seed)
        picture = picture_of(env)
        first, second, total = map(int, env.question.answer.split(", "))
        names = [word.strip("?") for word in env.question.prompt.split() if word.strip("?") in tuple("ABCDEFGHIJ")]
        blue = pillow.new("RGB", (1, 1), "steelblue").getpixel((0, 0))
        heights = []
        for name in names:
            x = 40 + 20 + 80 * "ABCDEFGHIJ".index(name) + 20
            heights.append(sum(picture.getpixel((x, y)) == blue for y in range(picture.height)) // 3)
        assert heights == [first, second]
        assert total == first + second
        assert picture.width == 40 + 80 * num_bars


def test_the_observation_and_the_action_pass_through_gymnasium():
    env = CountShapes()
    observation, info = env.reset(seed=0)
    assert "How many" in observation
    (opening,) = info["messages"]
    assert [part["type"] for part in opening["content"]] == ["image_url", "text"]
    assert env.step(env.oracle())[1:3] == (1.0, True)


def test_the_same_picture_is_the_same_file():
    assert png(pillow.new("RGB", (8, 8), "red")) == png(pillow.new("RGB", (8, 8), "red"))
    assert missing_pillow() == ""
