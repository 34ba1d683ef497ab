--- Every request that the HTTP client of this process sends, held against the API of ConTree before it goes out: what
-- our own server would put up with is found here.

local core = require "bough.core"
local schema = require "spec.support.contree_schema"

local checked_http = { complaints = {}, seen = {}, count = 0 }

local function check(user_agent, request)
  local headers = { ["user-agent"] = user_agent }
  for name, value in pairs(request.headers or {}) do headers[name:lower()] = tostring(value) end
  if request.bearer then headers.authorization = "Bearer " .. request.bearer end
  if request.compressed then headers["accept-encoding"] = "gzip" end
  local body = type(request.body) == "string" and request.body or ""
  if request.body then headers["content-length"] = tostring(#body) end
  local target = request.url:gsub("^%a+://[^/]*", "")
  local good, what = schema.check(request.method or (request.body and "POST" or "GET"), target, headers, body)
  checked_http.count = checked_http.count + 1
  if good then
    checked_http.seen[what] = (checked_http.seen[what] or 0) + 1
  else
    table.insert(checked_http.complaints, what)
  end
end

local client_meta = {}
client_meta.__index = client_meta

for _, name in ipairs { "request", "start", "open" } do
  client_meta[name] = function(self, request)
    check(self.user_agent, request)
    return self.client[name](self.client, request)
  end
end

function client_meta:close() self.client:close() end

--- Puts itself in the place of `core.http`.
--- @return fun() restore
function checked_http.install()
  local before = core.http
  core.http = function(opts)
    return setmetatable({ client = before(opts), user_agent = opts and opts.user_agent or "bough" }, client_meta)
  end
  return function() core.http = before end
end

return checked_http
