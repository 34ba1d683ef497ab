--- What an image says about runs that do not say it themselves: environment, directory, user, command.
-- It comes from whoever made the image; what makes no sense is left out.

local check = require "bough.check"
local errors = require "bough.error"
local json = require "bough.json"

local M = {}

---@class bough.image_defaults
---@field env table<string, string>
---@field cwd string?
---@field user string?
---@field entrypoint string[]?
---@field cmd string[]?
---@field labels table<string, string>?
---@field exposed_ports string[]?
---@field architecture string?
---@field variant string?
---@field os string?

local function is_text(value)
  return type(value) == "string" and value ~= "" and not value:find("\0", 1, true)
end

local function without_null(value)
  if value == json.null then return nil end
  if type(value) ~= "table" then return value end
  local kept = {}
  for name, inner in pairs(value) do kept[name] = without_null(inner) end
  return kept
end

local function words(value)
  if type(value) ~= "table" then return nil end
  local all = {}
  for i, word in ipairs(value) do
    if type(word) ~= "string" or word:find("\0", 1, true) then return nil end
    all[i] = word
  end
  if #all == 0 or all[1] == "" then return nil end
  return all
end

local function environment(value)
  local env = {}
  if type(value) ~= "table" then return env end
  for _, setting in ipairs(value) do
    local name, content = tostring(setting):match("^([^=%z]+)=([^%z]*)$")
    if name then env[name] = content end
  end
  return env
end

--- Reads a row's `config`.
---@param text string? JSON
---@return bough.image_defaults
function M.read(text)
  local value = text and json.read(text)
  local given = value and without_null(value) or {}
  local cwd = is_text(given.cwd) and given.cwd or nil
  if cwd and cwd:sub(1, 1) ~= "/" then cwd = "/" .. cwd end
  given.env = environment(given.env)
  given.cwd = cwd
  given.user = is_text(given.user) and given.user or nil
  given.entrypoint = words(given.entrypoint)
  given.cmd = words(given.cmd)
  return given
end

local keys = {
  "env", "cwd", "user", "entrypoint", "cmd", "labels", "exposed_ports", "architecture", "variant", "os",
}

--- Writes what `read` reads. Raises `invalid`.
---@param given bough.image_defaults
---@param op string
---@return string text JSON
function M.write(given, op)
  if type(given) ~= "table" then
    errors.raise("invalid", op, "config must be a table as image.config is, got %s", errors.quote(given))
  end
  local all = {}
  for name, value in pairs(errors.check_keys(op, given, keys)) do all[name] = value end
  local env = {}
  for name, value in pairs(check.env(given.env, op) or {}) do
    if value then env[#env + 1] = name .. "=" .. value end
  end
  table.sort(env)
  all.env = env[1] and env or nil
  all.cwd, all.user = check.cwd(given.cwd, op), check.user(given.user, op)
  for _, name in ipairs { "entrypoint", "cmd" } do
    all[name] = check.strings(given[name], op, "config." .. name)
  end
  return json.write(all)
end

return M
