"""The text on which formats are judged: plain prose, dialogue, numbers, code and lists, written for this purpose."""

SAMPLE_TEXT = """\
The harbour town of Wellin has three bridges, two schools and one very old clock. Every morning at six the baker lights \
his ovens, and by seven the smell of fresh bread has reached the market square. Fishing boats return before noon; their \
crews unload crates of herring and mackerel, weigh them, and argue about the price. In winter the water near the pier \
freezes, and children skate there until the lamps are lit.

A computer program is a list of instructions. To sort ten numbers you may compare neighbours and swap those that stand \
in the wrong order, again and again, until nothing changes. This is slow: for a thousand numbers it takes about half a \
million comparisons, while a better method that divides the list in two halves, sorts each of them and merges the \
results needs roughly ten thousand.

def average(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)

"Did you water the tomatoes?" asked Maria.
"Twice," said her brother, "but the soil is dry again. It has not rained since the first of May."
"Then we should collect water from the roof. My neighbour stores four hundred litres in two barrels, and he has never \
had to use the tap."

Water boils at 100 degrees Celsius at sea level and freezes at 0. On a high mountain the pressure of the air is lower, \
so water boils sooner: at 3,000 metres it takes only about 90 degrees. That is why potatoes cook more slowly in the \
Alps than in Amsterdam.

The capital of Italy is Rome, the capital of Spain is Madrid and the capital of Norway is Oslo. The largest planet of \
our solar system is Jupiter; the smallest is Mercury. The Earth turns around the Sun once in a year and around itself \
once in a day.

To make pancakes for four people you need:
1. 250 grams of flour
2. half a litre of milk
3. three eggs
4. a pinch of salt and a little butter

Mix the flour with the milk until it is smooth, then add the eggs and the salt. Let the dough rest for twenty minutes. \
Heat the butter in a pan, pour in just enough dough to cover the bottom, and turn the pancake when its edges are brown.

Dear Mr. Novak, thank you for your letter of 14 March. We are sorry that the parcel arrived late and that one of the \
glasses was broken. We have sent you a new one today; you do not need to return the old one. If you have any further \
questions, please call us between nine and five o'clock.

History is rarely a straight line. The printing press did not only spread knowledge, it also spread rumours; the \
railway brought markets closer together and at the same time emptied villages. People who lived through such changes \
seldom agreed on whether they were good or bad, and often the same person thought both, depending on the day.

SELECT name, price FROM products WHERE price < 20 ORDER BY name;

When the storm had passed, the keeper of the lighthouse climbed the hundred and twelve steps to look at the lamp. One \
pane of glass was cracked, but the light still burned. Far out, a single ship was moving slowly to the north.
"""

SENTENCES = (
    "The train to the coast leaves at half past eight.",
    "She repaired the old radio with a new capacitor.",
    "Interest rates rose again in the third quarter.",
    "How do I reset my password?",
    "Cats sleep for most of the day.",
    "The committee could not agree on the budget.",
    "Mix flour, eggs and milk until the dough is smooth.",
    "A stack returns the last element that was added first.",
)
