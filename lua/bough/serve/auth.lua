--- Who a request comes from, and what that one may do.

local core = require "bough.core"
local http = require "bough.serve.http"

local M = {}

local CHALLENGE = { ["WWW-Authenticate"] = 'Bearer realm="bough"' }

---@class bough.serve.auth
---@field private by_hash table<string, bough.serve.token>
---@field private project string?
local auth = {}
local auth_meta = { __index = auth, __name = "bough.serve.auth" }

--- The door of a server.
---@param config table of `bough.serve.config`
---@param log fun(event: table) told of those who were turned away
---@return bough.serve.auth
function M.new(config, log)
  local by_hash = {}
  for _, token in ipairs(config.tokens) do by_hash[token.hash] = token end
  return setmetatable({ by_hash = by_hash, project = config.project, log = log }, auth_meta)
end

local function refuse(self, request, reason, message)
  self.log { event = "denied", request = request.id, peer = request.peer, reason = reason }
  error(http.problem(401, message, { kind = "auth", headers = CHALLENGE }), 0)
end

--- The token of a request. Raises 401 without one that is known, 400 and 403 where the server is for one project and
--- the request is not.
---@param request bough.serve.request
---@return bough.serve.token
function auth:identify(request)
  local header = request.headers.authorization
  if not header then refuse(self, request, "no token", 'A bearer token is missing: "Authorization: Bearer ..."') end
  local scheme, secret = header:match "^%s*(%S+)%s+(%S+)%s*$"
  if not secret or scheme:lower() ~= "bearer" then
    refuse(self, request, "no bearer token", 'The header must be "Authorization: Bearer ..."')
  end
  -- Found by its hash, so how long the search takes tells nothing of the tokens there are.
  local token = self.by_hash[core.sha256(secret)]
  if not token then refuse(self, request, "unknown token", "Unknown token") end
  request.token = token -- from here on the log has its name
  if token.expires and core.time() >= token.expires then
    refuse(self, request, "expired token", "The token has expired")
  end
  if self.project then
    local project = request.headers.project
    if not project or project == "" then
      error(http.problem(400, 'Missing "Project" header', { kind = "invalid" }), 0)
    end
    if project ~= self.project then
      error(http.problem(403, "No access to this project", { kind = "denied" }), 0)
    end
  end
  return token
end

--- Raises 403 unless the token has one of these permissions.
---@param token bough.serve.token
---@param ... string
function M.demand(token, ...)
  for _, name in ipairs { ... } do
    if token.permissions[name] then return end
  end
  local wanted = table.concat({ ... }, " or ")
  error(http.problem(403, "Insufficient permissions: " .. wanted, { kind = "denied" }), 0)
end

return M
