--- The endpoints: which path and method is whose work, and who may ask for it.

local auth = require "bough.serve.auth"
local http = require "bough.serve.http"

local M = {}

local RUN = { "spawn", "spawn_disposable" }
local LIST = { "list" }
-- An operation and its files concern whoever may start some, beside those who may look at everything.
local OWN = { "list", "spawn", "spawn_disposable", "import" }
local FILE = { "list", "spawn", "spawn_disposable" }

-- Path below /v1, with * for what changes; method; module and function; permissions, of which one will do.
local endpoints = {
  { "whoami", "GET", "account", "whoami" },
  { "images", "GET", "images", "list", LIST },
  { "images/*/tag", "PATCH", "images", "tag", { "set_image_tag" } },
  { "images/*/tag", "DELETE", "images", "untag", { "set_image_tag" } },
  { "images/import", "POST", "imports", "create", { "import" } },
  { "files", "GET", "files", "list", LIST },
  { "files", "POST", "files", "upload", RUN },
  { "files/*", "GET", "files", "get", FILE },
  { "files/*", "HEAD", "files", "get", FILE },
  { "instances", "POST", "instances", "spawn", RUN },
  { "operations", "GET", "operations", "list", LIST },
  { "operations/*", "GET", "operations", "get", OWN },
  { "operations/*", "DELETE", "operations", "cancel", { "cancel" } },
  { "operations/*/events", "GET", "events", "follow", OWN },
  { "operations/*/subprocesses", "POST", "subprocesses", "create", RUN },
  { "operations/*/subprocesses/*", "GET", "subprocesses", "result", OWN },
  { "operations/*/subprocesses/*", "DELETE", "subprocesses", "signal", RUN },
  { "operations/*/subprocesses/*/stdin", "POST", "subprocesses", "stdin", RUN },
  { "inspect/", "GET", "inspect", "find", LIST },
  { "inspect/*/", "GET", "inspect", "image", LIST },
  { "inspect/*/list", "GET", "inspect", "list", LIST },
  { "inspect/*/download", "GET", "inspect", "download", LIST },
  { "inspect/*/download", "HEAD", "inspect", "download", LIST },
  { "inspect/*/archive", "GET", "inspect", "archive", LIST },
  { "inspect/*/archive", "HEAD", "inspect", "archive", LIST },
  { "inspect/*/grep", "GET", "inspect", "grep", LIST },
}

-- A tree of segments; "/" stands for the slash at the end. A node has `methods` where a path ends.
local function grow()
  local root = {}
  for _, endpoint in ipairs(endpoints) do
    local path, method, file, name, permissions = table.unpack(endpoint, 1, 5)
    local node = root
    for segment in path:gmatch "[^/]+" do
      node[segment] = node[segment] or {}
      node = node[segment]
    end
    if path:sub(-1) == "/" then
      node["/"] = node["/"] or {}
      node = node["/"]
    end
    node.methods = node.methods or {}
    node.methods[method] = { module = "bough.serve." .. file, name = name, permissions = permissions or {} }
  end
  return root
end

local root = grow()

local problem = http.fail

local function unknown(request) problem(404, ("No such route: %s"):format(request.path), { kind = "not_found" }) end

-- Where in the path begins what is behind the base path and /v1, or behind /v1 alone; nil for what is elsewhere.
local function below(segments, base)
  local at = 1
  while base[at] and segments[at] == base[at] do at = at + 1 end
  if not base[at] and segments[at] == "v1" then return at + 1 end
  return segments[1] == "v1" and 2 or nil
end

-- The node of a path, and what stood for its stars.
local function find(request, base)
  local segments, values = request.segments, {}
  local last = #segments
  local has_slash = request.path:sub(-1) == "/"
  if segments[last] == "" then last = last - 1 end
  local at = below(segments, base)
  if not at then return nil end
  local node = root
  for i = at, last do
    local segment = segments[i]
    local literal = segment ~= "methods" and segment ~= "*" and segment ~= "/" and node[segment]
    if literal then
      node = literal
    elseif node["*"] and segment ~= "" then
      node, values[#values + 1] = node["*"], segment
    else
      return nil
    end
  end
  if not has_slash then
    return node.methods and node or node["/"] and "slash" or nil, values
  end
  return node["/"], values
end

local function allowed(methods)
  local names = {}
  for name in pairs(methods) do names[#names + 1] = name end
  table.sort(names)
  return table.concat(names, ", ")
end

local function refuse_method(request, names)
  problem(405, ("Method %s is not supported here"):format(request.method), {
    kind = "invalid", headers = { Allow = names },
  })
end

-- The same address with a slash behind it, relative, so that it holds behind a proxy too.
local function redirect(request)
  local name = request.path:match "([^/]*)$"
  local query = request.query and request.query ~= "" and "?" .. request.query or ""
  request:reply(308, nil, { Location = name .. "/" .. query })
end

local function handler_of(endpoint)
  local handler = endpoint.handler
  if not handler then
    handler = require(endpoint.module)[endpoint.name]
    endpoint.handler = handler
  end
  return handler
end

--- Makes the handler of all requests.
---@param app table the server's parts; `auth` and `config` among them
---@return fun(request: bough.serve.request)
function M.new(app)
  local base = {}
  for name in app.config.base_path:gmatch "[^/]+" do base[#base + 1] = name end
  return function(request)
    local token = app.auth:identify(request)
    local node, values = find(request, base)
    if not node then unknown(request) end
    if node == "slash" then
      if request.method ~= "GET" then refuse_method(request, "GET") end
      return redirect(request)
    end
    local endpoint = node.methods[request.method]
    if not endpoint then refuse_method(request, allowed(node.methods)) end
    if endpoint.permissions[1] then auth.demand(token, table.unpack(endpoint.permissions)) end
    return handler_of(endpoint)(app, request, table.unpack(values))
  end
end

return M
