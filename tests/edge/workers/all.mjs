// The Workers of examples/ as one, in workerd: the first part of the path says which; its bindings are D1's own.
import analytics from "analytics-snapshots/worker.mjs";
import catalog from "product-catalog/worker.mjs";
import configuration from "tenant-configuration/worker.mjs";
import flags from "feature-flags/worker.mjs";
import menu from "menu-items/worker.mjs";

const workers = {
  "product-catalog": catalog,
  "tenant-configuration": configuration,
  "menu-items": menu,
  "analytics-snapshots": analytics,
  "feature-flags": flags,
};

export default {
  fetch(request, env) {
    return workers[new URL(request.url).pathname.slice(1)].fetch(request, env);
  },
};
