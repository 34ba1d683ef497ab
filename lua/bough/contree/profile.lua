--- Which service, and who we are there: from options, the environment, and the profile files of the ConTree tools.

local core = require "bough.core"
local errors = require "bough.error"

local M = {}

local quote, raise = errors.quote, errors.raise

--- Where profiles of type `iam` are when they do not say, and a token without an address.
M.DEFAULT_URL = "https://api.tokenfactory.nebius.com/sandboxes"

local OP = "credentials"
local FILE_BYTES = 1 << 20
local TOKEN_BYTES = 64 << 10

---@class bough.contree.profile
---@field name string? of the profile in the files; "environment"; nil for what options said
---@field type "iam"|"jwt"
---@field url string without a slash at its end
---@field token string
---@field project string?

-- Addresses ----------------------------------------------------------------------------------------

--- Checks the base URL of a service.
---@param text any
---@param where string what names it, for messages: "option url", ...
---@param op string?
---@return string url the prefix of its path kept, slashes at its end removed
function M.base_url(text, where, op)
  op = op or OP
  if type(text) ~= "string" then raise("invalid", op, "%s must be a URL, not %s", where, quote(text)) end
  local url = text:match "^%s*(.-)%s*$"
  local scheme, rest = url:match "^(%a[%w+.-]*)://(.*)$"
  scheme = scheme and scheme:lower()
  if scheme ~= "http" and scheme ~= "https" then
    raise("invalid", op, "%s must begin with https:// or http://", where)
  end
  local authority, path = rest:match "^([^/?#\\]*)(.*)$"
  -- what comes before an @ may be a password: the value is not repeated
  if authority:find("@", 1, true) then
    raise("invalid", op, "%s holds a user or a password: give a token instead", where)
  end
  if path:find("[?#]") then raise("invalid", op, "%s must have neither a query nor a fragment", where) end
  if url:find "[%s%c\128-\255\\]" then raise("invalid", op, "%s holds characters that no URL has", where) end
  local port = authority:match "^%[[%x:.]+%](.*)$" or authority:match "^[%w._-]+(.*)$"
  local number = port and (port == "" and 1 or tonumber(port:match "^:(%d+)$"))
  if not number or number < 1 or number > 65535 then
    raise("invalid", op, "%s names no host", where)
  end
  return ("%s://%s%s"):format(scheme, authority, (path:gsub("/+$", "")))
end

--- Whether a URL leads to this machine.
---@param url string
---@return boolean
function M.is_loopback(url)
  local host = url:match "^%a+://(%[[^%]]*%])" or url:match "^%a+://([^/:]*)" or ""
  host = host:lower()
  return host == "localhost" or host:find "%.localhost$" ~= nil or host == "[::1]"
    or host:find "^127%.%d+%.%d+%.%d+$" ~= nil
end

--- Refuses to send a token without encryption to another machine.
---@param url string
---@param op string?
function M.check_encrypted(url, op)
  if url:find "^http://" and not M.is_loopback(url) then
    raise("auth", op or OP, "the token would go to %s without encryption, which is refused: use https, or give "
      .. "insecure = true", url:match "^http://([^/]*)")
  end
end

--- Checks a token.
---@param token any
---@param where string what names it; the token itself is never shown
---@param op string?
---@return string
function M.check_token(token, where, op)
  op = op or OP
  if type(token) ~= "string" then raise("invalid", op, "%s must be a string", where) end
  token = token:match "^%s*(.-)%s*$"
  if token == "" then raise("auth", op, "%s is empty", where) end
  if #token > TOKEN_BYTES or token:find "[^\33-\126]" then raise("auth", op, "%s is no token", where) end
  return token
end

local function check_project(project, where, op)
  if type(project) ~= "string" or project:find "[^\32-\126]" or #project > 1024 then
    raise("invalid", op, "%s is no project id", where)
  end
  return project
end

-- The environment ----------------------------------------------------------------------------------

-- The first of the variables that is not empty; and its name.
local function variable(...)
  for _, name in ipairs { ... } do
    local value = os.getenv(name)
    value = value and value:match "^%s*(.-)%s*$"
    if value and value ~= "" then return value, name end
  end
end

local function environment()
  local found = {}
  found.token, found.token_name = variable("CONTREE_TOKEN", "NEBIUS_API_KEY")
  found.url, found.url_name = variable("CONTREE_URL", "CONTREE_BASE_URL")
  found.project, found.project_name = variable("CONTREE_PROJECT", "NEBIUS_PROJECT_ID", "NEBIUS_AI_PROJECT")
  return found
end

local function expand(path)
  if path ~= "~" and path:sub(1, 2) ~= "~/" then return path end
  local home = os.getenv "HOME"
  return home and home ~= "" and home .. path:sub(2) or path
end

--- The directory of the profile files.
---@return string? path nil where not even HOME is set
function M.directory()
  local own = os.getenv "CONTREE_HOME"
  if own and own ~= "" then return expand(own) end
  local config = os.getenv "XDG_CONFIG_HOME"
  if config and config ~= "" then return expand(config) .. "/contree" end
  local home = os.getenv "HOME"
  return home and home ~= "" and home .. "/.config/contree" or nil
end

-- The files ----------------------------------------------------------------------------------------

--- Reads an INI file as the ConTree tools write it into sections of keys in lower case. A later value of a key wins.
---@param text string
---@param path string for messages, which repeat nothing of the text
---@param sections table<string, table<string, string>>? what there is already
---@return table<string, table<string, string>>
function M.parse(text, path, sections)
  sections = sections or {}
  local section
  local number = 0
  for line in (text:gsub("^\u{FEFF}", "") .. "\n"):gmatch "([^\n]*)\n" do
    number = number + 1
    line = line:match "^%s*(.-)%s*$"
    local name = line:match "^%[(.-)%]$"
    if name then
      section = sections[name] or {}
      sections[name] = section
    elseif line ~= "" and not line:find "^[#;]" then
      local key, value = line:match "^([^=:]-)%s*[=:]%s*(.*)$"
      if not key or key == "" then
        raise("invalid", OP, "%s, line %d: neither a section nor key = value", path, number)
      elseif not section then
        raise("invalid", OP, "%s, line %d: a key before the first section", path, number)
      end
      section[key:lower()] = value:gsub("%%%%", "%%")
    end
  end
  return sections
end

-- Merges one file into the sections; false when there is none.
local function read(path, sections, secret, log)
  local found = core.fs.stat(path)
  if not found then return false end
  if found.kind ~= "file" then raise("invalid", OP, "%s is not a file", path) end
  if secret and log and found.mode & 0x3F ~= 0 then -- 077
    log("warning", path .. " can be read by others: set its mode to 0600", { path = path })
  end
  local text = core.fs.read(path, FILE_BYTES + 1)
  if #text > FILE_BYTES then raise("invalid", OP, "%s is larger than %d bytes", path, FILE_BYTES) end
  M.parse(text, path, sections)
  return true
end

---@class bough.contree.profile_files
---@field path string of the file with the secrets
---@field exists boolean
---@field sections table<string, table<string, string>>

local function read_files(log)
  local directory = M.directory()
  if not directory then return { path = "~/.config/contree/auth.ini", exists = false, sections = {} } end
  local files = { path = directory .. "/auth.ini", sections = {} }
  local plain = read(directory .. "/cli.ini", files.sections, false, log)
  files.exists = read(files.path, files.sections, true, log) or plain
  return files
end

local function field(files, name, key)
  local own, default = files.sections["profile:" .. name], files.sections.DEFAULT
  local value = own[key]
  if value == nil and default then value = default[key] end
  return value ~= "" and value or nil
end

local function names_of(files)
  local names = {}
  for section in pairs(files.sections) do names[#names + 1] = section:match "^profile:(.*)$" end
  table.sort(names)
  return names
end

-- What the files say of one profile, without the check that it is usable.
local function profile_of(files, name)
  local where = ("profile %s in %s"):format(quote(name), files.path)
  local kind = (field(files, name, "type") or "jwt"):lower()
  if kind ~= "iam" and kind ~= "jwt" then
    raise("invalid", OP, "%s: type must be iam or jwt, not %s", where, quote(kind))
  end
  local url = field(files, name, "url") or (kind == "iam" and M.DEFAULT_URL or nil)
  return {
    name = name, type = kind, where = where, token = field(files, name, "token"),
    project = field(files, name, "project"),
    url = url and M.base_url(url, "url of " .. where),
  }
end

local function pick(files, name, said_by)
  if files.sections["profile:" .. name] then return profile_of(files, name) end
  local names = names_of(files)
  if not files.exists then
    raise("not_found", OP, "there is no profile %s (%s): there is no %s", quote(name), said_by, files.path)
  end
  raise("not_found", OP, "%s has no profile %s (%s): %s", files.path, quote(name), said_by,
    names[1] and "there are " .. table.concat(names, ", ") or "it has none")
end

-- The profile of the files for an address: the chosen one if it fits, or the only one that does.
local function pick_by_url(files, url, chosen)
  local fitting = {}
  for _, name in ipairs(names_of(files)) do
    local good, profile = pcall(profile_of, files, name)
    if good and profile.url == url and profile.token then
      if name == chosen then return profile end
      fitting[#fitting + 1] = profile
    end
  end
  return #fitting == 1 and fitting[1] or nil
end

-- Loading ------------------------------------------------------------------------------------------

local function complete(profile)
  if not profile.token then raise("auth", OP, "%s has no token", profile.where) end
  if not profile.url then raise("invalid", OP, "%s has no url, and type jwt has no default", profile.where) end
  return profile
end

local function chosen_name(files)
  local named = variable "CONTREE_PROFILE"
  if named then return named, "CONTREE_PROFILE" end
  local default = files.sections.DEFAULT
  local active = default and default.profile
  if active and active ~= "" then return active, "the active one" end
  return "default", "the default"
end

-- An address without a token: whoever has one for exactly this address. A token never goes where it was not meant for.
local function token_for(url, env, log)
  if env.token and (not env.url or M.base_url(env.url, env.url_name) == url) then
    return { name = "environment", type = "jwt", url = url, token = env.token, project = env.project,
      where = env.token_name }
  end
  local files = read_files(log)
  local found = pick_by_url(files, url, (chosen_name(files)))
  if found then return found end
  raise("auth", OP, "no token for %s: give token, set CONTREE_TOKEN and CONTREE_URL, or add a profile with this url "
    .. "to %s", url:match "^%a+://([^/]*)", files.path)
end

local function find(opts, env)
  local url = opts.url and M.base_url(opts.url, "option url")
  if opts.profile then
    local profile = pick(read_files(opts.log), opts.profile, "option profile")
    -- another address is another service, which must not learn the token
    if url and url ~= profile.url and not opts.token then
      raise("auth", OP, "%s is for another url: give token as well", profile.where)
    end
    profile.url, profile.token = url or profile.url, opts.token or profile.token
    return profile
  end
  if opts.token then
    local base = url or (env.url and M.base_url(env.url, env.url_name))
    local fits = not env.url or M.base_url(env.url, env.url_name) == base
    return { type = base and "jwt" or "iam", url = base or M.DEFAULT_URL, token = opts.token,
      project = fits and env.project or nil, where = "option token" }
  end
  if url then return token_for(url, env, opts.log) end
  if env.token and env.url then
    return { name = "environment", type = "jwt", url = M.base_url(env.url, env.url_name), token = env.token,
      project = env.project, where = env.token_name }
  end
  local files = read_files(opts.log)
  if not files.exists and not variable "CONTREE_PROFILE" then
    raise("auth", OP, "nobody said who we are: give url and token, set CONTREE_TOKEN and CONTREE_URL, or write %s",
      files.path)
  end
  return pick(files, chosen_name(files))
end

--- Finds out where the service is and who we are there. What the options say goes before the environment (a token and
--- CONTREE_URL together), and that before the profile files. A token goes only to the address that it was given for.
--- Reads files, and so waits.
---
--- Raises `auth` without a usable token, and where it would travel without encryption; `not_found` for a profile that
--- does not exist; `invalid` for what cannot be understood. No message holds a token.
---@param opts { url: string?, token: string?, project: string|false|nil, profile: string?, insecure: boolean?,
---  log: fun(level: string, message: string, fields: table)? }?
--- `project`: false sends none; `insecure`: the token may go over plain http to another machine
---@return bough.contree.profile
function M.load(opts)
  opts = opts or {}
  if opts.profile ~= nil and type(opts.profile) ~= "string" then
    raise("invalid", OP, "option profile must be a string, not %s", quote(opts.profile))
  end
  if opts.token ~= nil then M.check_token(opts.token, "option token") end
  local found = complete(find(opts, environment()))
  local project = opts.project
  if project == nil then project = found.project end
  local result = {
    name = found.name, type = found.type, url = found.url,
    token = M.check_token(found.token, opts.token and "option token" or "the token of " .. found.where),
    project = project and project ~= "" and check_project(project, "option project", OP) or nil,
  }
  if not opts.insecure then M.check_encrypted(result.url) end
  return result
end

return M
