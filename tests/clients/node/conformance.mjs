// Runs the official conformance suite against a server: everything that it has for one revision of the protocol, and
// then the scenarios named besides. Prints one JSON object: what the checks of each scenario said.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";

const suite = "/client/node_modules/@modelcontextprotocol/conformance";
const [url, revision, ...named] = process.argv.slice(2);
const sets = parse(readFileSync(join(suite, "requirements", `${revision}.yaml`), "utf8"));
const unscored = sets.not_scored.filter((entry) => entry.leg === "server").map((entry) => entry.scenario);

const results = mkdtempSync("/tmp/conformance-");
const run = (...args) =>
  spawnSync(process.execPath, [join(suite, "dist/index.js"), "server", "--url", url, "-o", results, ...args], {
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
const began = Date.now();
const all = run("--requirements", revision);
const seconds = (Date.now() - began) / 1000;
for (const scenario of named) run("--scenario", scenario);

// a folder of results is called server-SCENARIO-TIME; one without checks is of a scenario that broke off
const told = new Map();
for (const folder of readdirSync(results)) {
  const file = join(results, folder, "checks.json");
  const scenario = folder.match(/^server-(.*)-\d{4}-\d\d-\d\dT/)[1];
  if (existsSync(file)) told.set(scenario, JSON.parse(readFileSync(file, "utf8")));
}
const group = (scenarios) =>
  scenarios.map((scenario) => ({
    scenario,
    checks: told.get(scenario)?.map(({ id, status, errorMessage }) => ({ id, status, errorMessage })) ?? null,
  }));
console.log(
  JSON.stringify({
    exit: all.status,
    seconds,
    last: `${all.stdout}${all.stderr}`.slice(-2000),
    required: group(sets.server),
    unscored: group(unscored),
    named: group(named),
  }),
);
