/** Whose request it is: https://tenant-001.example.com/ is tenant-001's. */
export function getTenantId(request) {
  return new URL(request.url).hostname.split(".")[0];
}
