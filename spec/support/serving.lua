--- A server of the REST API in this process, and requests to it.

local bough = require "bough"
local cjson = require "cjson"
local core = require "bough.core"
local scratch = require "spec.support.scratch"

local serving = {}
serving.__index = serving

serving.TOKEN = "a-token-for-the-tests"

--- Starts a server on a free port.
--- @param opts table? of bough.serve; default: a fresh store with busybox in it, and one token that may do everything
function serving.start(opts)
  local all = { port = 0, images = { "busybox" } }
  for name, value in pairs(opts or {}) do all[name] = value end
  if not all.engine and not all.home then all.home = scratch.store() end
  if not all.tokens and not all.token_file then all.tokens = { { name = "tests", token = serving.TOKEN } } end
  local server = bough.serve(all)
  local first = all.tokens and all.tokens[1]
  return setmetatable({
    server = server, url = server.url, home = all.home, engine = server.engine,
    token = type(first) == "table" and first.token or first, http = core.http { ca_file = all.cert },
  }, serving)
end

--- One request. Redirects are not followed.
--- @param method string
--- @param path string below /v1, with its query; or a whole URL
--- @param opts { token: string|false|nil, headers: table?, body: any, json: any, follow: integer?,
---   compressed: boolean?, max_bytes: integer? }?
--- @return table answer status, headers, body; and `json` where that is what came
function serving:request(method, path, opts)
  opts = opts or {}
  local headers = {}
  for name, value in pairs(opts.headers or {}) do headers[name] = value end
  local body = opts.body
  if opts.json ~= nil then
    body = cjson.encode(opts.json)
    headers["Content-Type"] = headers["Content-Type"] or "application/json"
  end
  local token = opts.token
  if token == nil then token = self.token end
  local answer = self.http:request {
    url = path:find "^https?://" and path or self.url .. "/v1" .. path, method = method, headers = headers, body = body,
    bearer = token or nil, follow = opts.follow or 0, compressed = opts.compressed, max_bytes = opts.max_bytes,
    timeout = 60,
  }
  local result = { status = answer.status, headers = answer.headers, body = answer.body or "", url = answer.url }
  local kind = answer.headers["content-type"] or ""
  if kind:find "^application/json" and result.body:find "^[%[{]" then result.json = cjson.decode(result.body) end
  return result
end

for _, method in ipairs { "get", "head", "post", "patch", "delete" } do
  serving[method] = function(self, path, opts) return self:request(method:upper(), path, opts) end
end

--- The operation when it is over. Waits for that.
--- @param uuid string
function serving:finished(uuid)
  for _ = 1, 1200 do
    local operation = self:get("/operations/" .. uuid).json
    if operation.status == "SUCCESS" or operation.status == "FAILED" or operation.status == "CANCELLED" then
      return operation
    end
    core.sleep(0.05)
  end
  error("operation " .. uuid .. " does not end")
end

--- The uuid of an image by its tag.
function serving:image(tag)
  local found = self:get("/images?tag=" .. tag)
  return assert(found.json.images[1], found.body).uuid
end

function serving:stop()
  self.http:close()
  self.server:stop(0)
end

return serving
