--- What `docker login` (or `podman login`) has stored: credentials for registries.

local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"

local M = {}

-- Blanks and missing padding are suffered, and a digit too many, which says nothing.
local function base64_decode(text)
  text = text:gsub("%s", ""):gsub("=+$", "")
  if text:find "[^%w+/]" then return nil end
  if #text % 4 == 1 then text = text:sub(1, -2) end
  return core.base64_decode(text .. ("="):rep(-#text % 4))
end

--- Where the file is, for this user.
---@return string?
function M.path()
  local directory = os.getenv "DOCKER_CONFIG"
  if directory and directory ~= "" then return directory .. "/config.json" end
  local home = os.getenv "HOME"
  return home and home ~= "" and home .. "/.docker/config.json" or nil
end

-- Keys are hosts, or URLs of old: "https://index.docker.io/v1/".
local function host_of(key)
  local host = key:gsub("^https?://", ""):gsub("/.*$", ""):lower()
  if host == "index.docker.io" or host == "registry-1.docker.io" then return "docker.io" end
  return host
end

local function table_or_empty(value) return type(value) == "table" and value or {} end

local function text_or_nil(value) return type(value) == "string" and value ~= "" and value or nil end

local function read(path, op)
  local found = core.fs.stat(path)
  if not found or found.kind ~= "file" then return nil end
  local value, why = json.read(core.fs.read(path, json.most_bytes + 1))
  if not value then errors.raise("invalid", op, "%s %s: mend it or remove it", path, why) end
  return value
end

---@class bough.credentials
---@field username string?
---@field password string?
---@field identity_token string? in place of a password
---@field helper string? only: the program that keeps them, which is not run

--- What is stored for a registry. Waits. Raises `invalid` for a file that is broken.
---@param domain string "docker.io", "localhost:5000"
---@param op string?
---@return bough.credentials? nil: nothing
function M.find(domain, op)
  local path = M.path()
  local config = path and read(path, op)
  if not config then return nil end
  for key, entry in pairs(table_or_empty(config.auths)) do
    if host_of(key) == domain and type(entry) == "table" then
      local username, password = text_or_nil(entry.username), text_or_nil(entry.password)
      if text_or_nil(entry.auth) then
        local decoded = base64_decode(entry.auth)
        username, password = (decoded or ""):match("^([^:]*):(.*)$")
        if not username then
          errors.raise("invalid", op, "%s: the credentials for %s are no base64 of user:password", path,
            domain)
        end
        password = password:gsub("%z+$", "")
      end
      local token = text_or_nil(entry.identitytoken)
      if username == "<token>" and not token then token = password end
      if token then return { identity_token = token } end
      if username and password then return { username = username, password = password } end
    end
  end
  local helper = text_or_nil(config.credsStore)
  for key, name in pairs(table_or_empty(config.credHelpers)) do
    if host_of(key) == domain then helper = text_or_nil(name) or helper end
  end
  return helper and { helper = helper } or nil
end

return M
