--- Names of images in registries: `debian`, `docker.io/library/debian:12`, `ghcr.io/a/b@sha256:...`,
--- `localhost:5000/x:y`, `[::1]:5000/x`, each with `docker://` in front or not.

local errors = require "bough.error"

local M = {}

local quote = errors.quote

local HUB, HUB_HOST = "docker.io", "registry-1.docker.io"
local hub_names = { ["docker.io"] = true, ["index.docker.io"] = true, ["registry-1.docker.io"] = true }

---@class bough.reference
---@field registry string where to ask: host, or host:port
---@field domain string as people write it: "docker.io"
---@field repository string "library/debian"
---@field tag string? "latest" when neither tag nor digest were given
---@field digest string? "sha256:..."
---@field name string the shortest text that means the same

local function is_host(text)
  if text:find("^%[[%x:.]+%]$") then return true end
  for label in (text .. "."):gmatch("([^.]*)%.") do
    if #label > 63 or not label:find("^%w[%w-]*$") or label:find("-$") then return false end
  end
  return #text <= 253
end

-- A host, perhaps with a port; not "." and "..", which begin a path.
local function is_domain(text)
  local host, port = text:match("^(.*):(%d+)$")
  if not host or text:find("%]$") then return is_host(text) end
  return is_host(host) and #port <= 5 and math.tointeger(tonumber(port)) < 65536
end

local function has_domain(first)
  return first == "localhost" or first:find("[.:]") ~= nil
end

-- One part of a repository: letters and digits, joined by ".", "_", "__" or any number of "-".
local function is_component(text)
  if not text:find("^[a-z0-9][a-z0-9._-]*$") or text:find("[._-]$") then return false end
  for run in text:gmatch("[._-]+") do
    if run ~= "." and run ~= "_" and run ~= "__" and not run:find("^%-+$") then return false end
  end
  return true
end

local function check_repository(repository, refuse)
  if repository == "" then refuse "it names no repository" end
  if #repository > 255 then refuse "its repository is longer than 255 bytes" end
  if repository:find("%u") then
    refuse("its repository %s has capital letters: they are never used there", quote(repository))
  end
  for part in (repository .. "/"):gmatch("([^/]*)/") do
    if not is_component(part) then
      refuse("its repository has the part %s: letters, digits, and single '.', '_' or '-' inside",
        quote(part))
    end
  end
end

local function check_tag(tag, refuse)
  if #tag > 128 then refuse "its tag is longer than 128 bytes" end
  if not tag:find("^[%w_][%w_.-]*$") then
    refuse("its tag is %s: letters, digits, '_', and inside '.' and '-'", quote(tag))
  end
end

local function check_digest(digest, refuse)
  local algorithm, hex = digest:match("^([a-z0-9+._-]+):(%x+)$")
  if not algorithm then refuse("its digest is %s, not sha256:...", quote(digest)) end
  if algorithm ~= "sha256" then
    refuse("its digest is a %s one, and only sha256 is supported", quote(algorithm))
  end
  if #hex ~= 64 or hex:find("%u") then
    refuse("its digest must have 64 digits in lower case, %s has not", quote(digest))
  end
end

local function familiar(domain, repository, tag, digest)
  local name = domain .. "/" .. repository
  if domain == HUB then name = repository:match("^library/([^/]+)$") or repository end
  if tag then name = name .. ":" .. tag end
  if digest then name = name .. "@" .. digest end
  return name
end

--- Takes a reference apart. Raises `invalid` naming the part that is wrong.
---@param text string
---@param op string?
---@return bough.reference
function M.parse(text, op)
  if type(text) ~= "string" then
    errors.raise("invalid", op, "an image in a registry is named by a string, not %s", quote(text))
  end
  local function refuse(fmt, ...)
    errors.raise("invalid", op, "image %s: %s", quote(text), fmt:format(...))
  end
  if text == "" then refuse "it is empty" end
  if #text > 1024 then refuse "it is longer than 1024 bytes" end
  local scheme, rest = text:match("^(%a+)://(.*)$")
  if scheme and scheme ~= "docker" then refuse("leave out %s", quote(scheme .. "://")) end
  rest = rest or text
  if rest:find("[%s%c]") then refuse "it holds blanks or control characters" end

  local digest
  if rest:find("@", 1, true) then
    rest, digest = rest:match("^([^@]*)@(.*)$")
    check_digest(digest, refuse)
  end
  local domain
  local first, path = rest:match("^([^/]*)/(.*)$")
  if first and has_domain(first) then
    if not is_domain(first) then refuse("%s is no host", quote(first)) end
    domain, rest = first:lower(), path
  end
  local repository, tag = rest:match("^([^:]*):(.*)$")
  repository = repository or rest
  if tag then check_tag(tag, refuse) end
  if domain == nil or hub_names[domain] then
    domain = HUB
    if repository ~= "" and not repository:find("/", 1, true) then repository = "library/" .. repository end
  end
  check_repository(repository, refuse)
  if not tag and not digest then tag = "latest" end
  return {
    registry = domain == HUB and HUB_HOST or domain, domain = domain, repository = repository, tag = tag,
    digest = digest, name = familiar(domain, repository, tag, digest),
  }
end

--- The shortest text that means the same: "debian:12" for "docker.io/library/debian:12".
---@param text string
---@return string
function M.familiar(text) return M.parse(text).name end

--- Whether a text that is no path here is meant as a name in a registry: it begins with a host, or with
--- "docker://".
---@param text string
---@return boolean
function M.looks_like(text)
  if text:find("^docker://") then return true end
  local first, path = text:match("^([^/]*)/(.+)$")
  return first ~= nil and has_domain(first) and is_domain(first) and path:sub(1, 1) ~= "/"
end

return M
