// What D1's binding sends its statements to: one tenant's database at the edge.
export default {
  fetch(request, { tenant, edge }) {
    const { pathname, search } = new URL(request.url);
    return edge.fetch(new Request(`http://edge/binding/${tenant}${pathname}${search}`, request));
  },
};
