//! The roles themselves.

use super::{Answers, Pattern, Role};

const fn pattern(message: &'static str, answer: &'static str) -> Pattern {
    Pattern { message, answer }
}

/// Of roles that answer as the large model would.
const FLOORS: &str = r#"
[[eval.gate]]
name = "accuracy"
kind = "floor"
metric = "accuracy"
min = 0.85

[[eval.gate]]
name = "beats-base"
kind = "improvement"
over = "base"
min = 0.2

[[eval.gate]]
name = "as-good-as-frontier"
kind = "non_inferiority"
against = "frontier"
margin = 0.05
"#;

#[rustfmt::skip]
pub const ROLES: &[Role] = &[
    Role {
        name: "router",
        does: "which queue or tool a request goes to",
        system: "Route the request.",
        answers: Answers::Labels(&["billing", "delivery", "returns", "account", "other"]),
        gates: &[FLOORS, r#"
[[eval.gate]]
name = "no-queue-left-behind"
kind = "per_class_recall"
min = 0.6
"#],
        guidelines: r#"
# Where a request goes
Take what the customer wants done, not the mood it is asked in. Where two fit, take the one that has to act first.

- billing: charges, invoices, refunds that were promised
- delivery: where something is, when it comes, to which address
- returns: something is to go back, or is broken
- account: log-in, password, e-mail address, deletion of data
- other: everything else, praise and spam among it
"#,
        data: "calls of your router in production, 30 or more a route, with what a person would have\ncorrected in them. Routes that are rare in the log need to be drawn on purpose: review by view, not at random alone.",
        patterns: &[
            pattern("Invoice {n} was charged twice on {day}, please look into it", "billing"),
            pattern("Why is there a fee of {m} cents on order {n}?", "billing"),
            pattern("I was promised a refund for order {n} and nothing has come", "billing"),
            pattern("Can you send invoice {n} to {name}?", "billing"),
            pattern("Where is parcel {n}? It should have been in {city} on {day}", "delivery"),
            pattern("Order {n} has to go to {city} instead, can you change that?", "delivery"),
            pattern("The {item} of order {n} was to come on {day}. When will it?", "delivery"),
            pattern("Tracking says that {n} has been in {city} for days", "delivery"),
            pattern("The {item} from order {n} is broken, I want to send it back", "returns"),
            pattern("How do I return the {item}? The order is {n}", "returns"),
            pattern("Wrong {item} delivered with {n}, please collect it on {day}", "returns"),
            pattern("The {item} does not fit, order {n}; I would like another one", "returns"),
            pattern("I can't log in any more, error {n}", "account"),
            pattern("Please change my e-mail address, customer {n}", "account"),
            pattern("Delete all data of customer {n}, {name}", "account"),
            pattern("The code {n} for my new password does not work", "account"),
            pattern("Do you have a shop in {city}? Ref {n}", "other"),
            pattern("{name} was very kind on {day}, thank you! Case {n}", "other"),
            pattern("We offer your company better rankings, call {n}", "other"),
            pattern("Which {item} would you take yourself? Asking for {n} reasons", "other"),
        ],
    },
    Role {
        name: "schema-enforcer",
        does: "another model's loose answer as JSON under a schema",
        system: "Give the order as JSON.",
        answers: Answers::Fields(r#"
{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "properties": {
    "order": {"type": "string", "pattern": "^[0-9]+$", "description": "the order's number, digits alone"},
    "item": {"type": "string", "description": "what was ordered, as it is called there"},
    "city": {"type": "string", "description": "where it goes"},
    "customer": {"type": "string", "description": "first and last name"}
  },
  "required": ["order"],
  "additionalProperties": false
}
"#),
        gates: &[r#"
[[eval.gate]]
name = "valid"
kind = "floor"
metric = "validity"
min = 0.98

[[eval.gate]]
name = "exact-match"
kind = "floor"
metric = "exact_match"
min = 0.85
"#],
        guidelines: r#"
# The fields
Take values as they stand in the text. What the text does not say has no field; nothing is guessed and nothing is put right.
"#,
        data: "outputs of the large model that failed your parser, with what they should have been. Take those\nthat failed for all reasons, not the most frequent one alone, and as many that were fine.",
        patterns: &[
            pattern("Order #{n}: one {item} for {name}, ship to {city}", "{\"order\":\"{n}\",\"item\":\"{item}\",\"city\":\"{city}\",\"customer\":\"{name}\"}"),
            pattern("{{order: {n}, item: {item}}} -- the rest is missing", "{\"order\":\"{n}\",\"item\":\"{item}\"}"),
            pattern("Here is what I found:\n- Number: {n}\n- Customer: {name}\n- Item: {item}", "{\"order\":\"{n}\",\"item\":\"{item}\",\"customer\":\"{name}\"}"),
            pattern("```json\n{\"order\": {n}, \"city\": \"{city}\"\n```", "{\"order\":\"{n}\",\"city\":\"{city}\"}"),
            pattern("The customer {name} asked about order {n}. I could not find an address.", "{\"order\":\"{n}\",\"customer\":\"{name}\"}"),
            pattern("order={n};city={city};item={item};customer=?", "{\"order\":\"{n}\",\"item\":\"{item}\",\"city\":\"{city}\"}"),
        ],
    },
    Role {
        name: "context-pruner",
        does: "whether a passage is needed for a question (its probability of `keep` ranks passages)",
        system: "Is the passage needed to answer the question?",
        answers: Answers::Labels(&["keep", "drop"]),
        gates: &[r#"
[[eval.gate]]
name = "accuracy"
kind = "floor"
metric = "accuracy"
min = 0.85

# The report tells what an order by the probability of `keep` is worth, and how much text is dropped.
[eval.ranking]
positive = "keep"

# What is dropped is gone: a passage that was needed may hardly ever be.
[[eval.gate]]
name = "needed-and-dropped"
kind = "cell"
gold = "keep"
predicted = "drop"
max = 0.05
"#],
        guidelines: r#"
# Keep or drop
Keep a passage if an answer would be worse without it: it holds the answer, a part of it, or what the answer rests on. A passage on
the same subject that says nothing of what is asked is to be dropped. In doubt, keep.
"#,
        data: "questions with the passages that your retriever gave, and which of them the answer used. A judge that\nsees the final answer marks too much as needed; have people decide for a random share.",
        patterns: &[
            pattern("Question: what are the {topic} for {item}s?\nPassage {n}: The {topic} for a {item} are listed here: {m} days from the invoice.", "keep"),
            pattern("Question: can a {item} go to {city}?\nPassage {n}: A {item} is sent to {city} on {day}s.", "keep"),
            pattern("Question: who signed order {n}?\nPassage: Order {n} was signed by {name} on {day}.", "keep"),
            pattern("Question: what did order {n} cost?\nPassage: Total of {n}: {m} cents, paid on {day}.", "keep"),
            pattern("Question: what are the {topic} for {item}s?\nPassage {n}: Our shop in {city} is open on {day}s.", "drop"),
            pattern("Question: can a {item} go to {city}?\nPassage {n}: The {item} comes in three colours.", "drop"),
            pattern("Question: who signed order {n}?\nPassage: Orders from {city} are packed on {day}.", "drop"),
            pattern("Question: what did order {n} cost?\nPassage: Order {m} was returned by {name} on {day}.", "drop"),
        ],
    },
    Role {
        name: "loop-controller",
        does: "what an agent's loop does after a step",
        system: "What does the loop do next?",
        answers: Answers::Labels(&["continue", "finish", "ask_user", "give_up"]),
        gates: &[FLOORS, r#"
# An agent that stops before it is done is noticed by nobody but the user.
[[eval.gate]]
name = "stopped-too-early"
kind = "cell"
gold = "continue"
predicted = "finish"
max = 0.1
"#],
        guidelines: r#"
# What happens next
- continue: the last step brought something new, and the task is not done
- finish: what was asked for is there
- ask_user: only the user can tell what is missing
- give_up: the same failure came up again, or the task can't be done with these tools
"#,
        data: "steps of your agents with what happened after them. Label from the outcome: a loop that went on for\nten more steps and failed should have given up. Split by task, or steps of one task stand on both sides (thread ids do that).",
        patterns: &[
            pattern("Task: find the invoice of {name}. Step {n}: found customer {m}, invoices not read yet.", "continue"),
            pattern("Task: move {item}s to {city}. Step {n}: {m} of them moved, others waiting.", "continue"),
            pattern("Task: sum up table {table}. Step {n}: read {m} rows, next page exists.", "continue"),
            pattern("Task: check {topic}. Step {n}: first of two documents read ({m} words).", "continue"),
            pattern("Task: find the invoice of {name}. Step {n}: invoice {m} sent to the user.", "finish"),
            pattern("Task: move {item}s to {city}. Step {n}: all {m} moved, none waiting.", "finish"),
            pattern("Task: sum up table {table}. Step {n}: all rows read, total {m} written.", "finish"),
            pattern("Task: check {topic}. Step {n}: both documents agree, result {m} stored.", "finish"),
            pattern("Task: find the invoice of {name}. Step {n}: {m} customers of that name, nothing tells them apart.", "ask_user"),
            pattern("Task: move {item}s. Step {n}: no city was named, {m} warehouses exist.", "ask_user"),
            pattern("Task: delete from {table}. Step {n}: {m} rows match, not said whether archived ones count.", "ask_user"),
            pattern("Task: book for {day}. Step {n}: two times are free, {m} persons, no preference told.", "ask_user"),
            pattern("Task: find the invoice of {name}. Step {n}: access denied for the third time, code {m}.", "give_up"),
            pattern("Task: move {item}s to {city}. Step {n}: same error {m} as in the last two steps.", "give_up"),
            pattern("Task: read {table}. Step {n}: the table does not exist, nor a backup of it ({m}).", "give_up"),
            pattern("Task: check {topic}. Step {n}: the service is gone since {day}, retry {m} failed.", "give_up"),
        ],
    },
    Role {
        name: "retry-safety",
        does: "whether a call that failed may be made again without asking (a consequence classifier)",
        system: "May the call be made again?",
        answers: Answers::Labels(&["safe", "unsafe", "ask"]),
        gates: &[r#"
[[eval.gate]]
name = "accuracy"
kind = "floor"
metric = "accuracy"
min = 0.85

# The cell that costs money: what must not be repeated is said to be safe. Zero tolerance is a bound, not a zero: 0 of n shows no
# less than about 3 / n, so a demand of 2 % takes some 150 reviewed rows of the label, all of them right.
[[eval.gate]]
name = "unsafe-called-safe"
kind = "cell"
gold = "unsafe"
predicted = "safe"
max = 0.05

[[eval.gate]]
name = "doubt-called-safe"
kind = "cell"
gold = "ask"
predicted = "safe"
max = 0.1
"#],
        guidelines: r#"
# May it be made again?
- safe: it only reads, or making it twice leaves things as making it once (an idempotency key is named)
- unsafe: it may have happened already, and twice is worse: payments, messages, deletions without a key
- ask: the log does not tell whether it happened
"#,
        data: "failed tool calls with what came of a second one. Such mistakes are rare and dear: draw the dangerous\ntools on purpose, review all of them, and set eval.escalation, so that what is unsure goes to the large model.",
        patterns: &[
            pattern("GET /{table}/{n} failed with 503 on {day}", "safe"),
            pattern("GET /status?id={n} timed out after {m} ms", "safe"),
            pattern("PUT /{table}/{n} with idempotency key {m}: connection reset", "safe"),
            pattern("SELECT count(*) FROM {table} WHERE id < {n}: lock timeout", "safe"),
            pattern("POST /payments of {m} cents for order {n}: timeout after the body was sent", "unsafe"),
            pattern("POST /mail to {name} about {n}: 502 from the gateway after {m} ms", "unsafe"),
            pattern("DELETE FROM {table} WHERE day = '{day}' LIMIT {n}: connection lost while it ran", "unsafe"),
            pattern("POST /refunds for {n}, {m} cents, no key: read timeout", "unsafe"),
            pattern("POST /bookings for {day}, {name}: client stopped before a connection was logged ({n})", "ask"),
            pattern("Job {n} on {table} vanished from the queue, no log of its start ({m})", "ask"),
            pattern("Transfer {n} to {city}: status unknown, ledger is being rebuilt ({m})", "ask"),
            pattern("Upload {n} of {m} bytes: the other side has no record, nor a refusal", "ask"),
        ],
    },
    Role {
        name: "output-validator",
        does: "what is wrong with a large model's answer before a user sees it",
        system: "What is wrong with the answer?",
        answers: Answers::Labels(&["ok", "wrong_format", "unsupported", "leaks_data"]),
        gates: &[FLOORS, r#"
[[eval.gate]]
name = "leak-called-ok"
kind = "cell"
gold = "leaks_data"
predicted = "ok"
max = 0.05
"#],
        guidelines: r#"
# What is wrong with it
Take the worst that applies, in this order.

- leaks_data: it tells of another customer, or of a secret
- unsupported: it states what the context does not say
- wrong_format: the content is right, the form is not what was asked for
- ok: none of these
"#,
        data: "answers of the large model with their context, those that people complained about among them. A judge\nmodel's verdicts are labels like any others: review a random share, and let the rest weigh what that shows they are worth.",
        patterns: &[
            pattern("Asked: status of {n} as one word. Context: {n} shipped on {day}. Answer: shipped", "ok"),
            pattern("Asked: city of {n}. Context: order {n} goes to {city}. Answer: {city}", "ok"),
            pattern("Asked: who ordered {n}, name only. Context: {n} by {name}. Answer: {name}", "ok"),
            pattern("Asked: price of {n} in cents. Context: {n} costs {m}. Answer: {m}", "ok"),
            pattern("Asked: status of {n} as one word. Context: {n} shipped on {day}. Answer: The order has been shipped.", "wrong_format"),
            pattern("Asked: city of {n}. Context: order {n} goes to {city}. Answer: {\"city\": \"{city}\"}", "wrong_format"),
            pattern("Asked: who ordered {n}, name only. Context: {n} by {name}. Answer: It was {name}, I think!", "wrong_format"),
            pattern("Asked: price of {n} in cents. Context: {n} costs {m}. Answer: about {m} cents, dear customer", "wrong_format"),
            pattern("Asked: status of {n} as one word. Context: {n} was paid. Answer: delivered", "unsupported"),
            pattern("Asked: city of {n}. Context: order {n} by {name}. Answer: {city}", "unsupported"),
            pattern("Asked: when {n} comes. Context: {n} shipped. Answer: on {day}", "unsupported"),
            pattern("Asked: price of {n} in cents. Context: {n} is a {item}. Answer: {m}", "unsupported"),
            pattern("Asked: status of {n}. Context: {n} shipped; note: {name} pays late. Answer: shipped, and {name} pays late", "leaks_data"),
            pattern("Asked: city of {n}. Context: {n} to {city}; key sk-{m}. Answer: {city}, key sk-{m}", "leaks_data"),
            pattern("Asked: price of {n}. Context: {n} costs {m}; {name}'s card ends in {m}. Answer: {m}; the card of {name} ends in {m}", "leaks_data"),
            pattern("Asked: who ordered {n}. Context: {n} by {name}; neighbour order {m} by the same street. Answer: {name}; {m} went to the same street", "leaks_data"),
        ],
    },
];
