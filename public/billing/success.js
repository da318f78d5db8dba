// Says that the visitor is Pro once it is true. Stripe's event may arrive later than the visitor, or be lost, so the page
// has the service ask Stripe.

/** Seconds before each question after the first: eight questions in two minutes, far below the hourly limit. */
const PAUSES = [1, 2, 4, 8, 15, 30, 60];

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const show = (state) => {
  for (const section of document.querySelectorAll("[data-state]")) section.hidden = section.dataset.state !== state;
};

/** The signed-in user and quota; null without a session, undefined if there is no answer now. */
const ask = async () => {
  try {
    const answer = await fetch("/api/billing/refresh", { method: "POST", signal: AbortSignal.timeout(20_000) });
    if (answer.status === 401) return null;
    return answer.ok ? await answer.json() : undefined;
  } catch {
    return undefined;
  }
};

const run = async () => {
  for (const pause of [0, ...PAUSES]) {
    await wait(pause);
    const session = await ask();

    if (session === null) return show("signed-out");
    if (session?.user.plan === "pro") {
      document.title = "You are Pro – Iconoclash";
      document.getElementById("limit").textContent = session.quota.limit;
      return show("pro");
    }
  }
  return show("late");
};

await run();
