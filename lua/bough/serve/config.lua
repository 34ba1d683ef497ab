--- What a server was told to be: options from Lua or the command line, and token files, checked and complete.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local reference = require "bough.reference"
local wire = require "bough.contree.wire"

local M = {}

local raise, quote = errors.raise, errors.quote

local OP = "serve"

local MOST_PEM = 1 << 20 -- bytes of a file with certificates or a key

---@class bough.serve.limits what one token may use; whole numbers
---@field instance_max_concurrency integer runs at a time; default 50
---@field instance_max_timeout integer seconds of a run; default 3600
---@field instance_max_layer_bytes integer? bytes that a run may write, which then lie in memory until its end;
---  default: what the disk has room for
---@field instance_memory integer? bytes of memory of a run; default: the engine's
---@field instance_pids integer? processes of a run; default: the engine's
---@field images_import_max_concurrency integer imports at a time; default 8
---@field images_import_max_timeout integer seconds of an import; default 3600
---@field images_import_max_bytes integer bytes of an imported tree; default 12 GiB
---@field upload_max_bytes integer bytes of an uploaded file; default 128 MiB

local sizes = {
  instance_max_layer_bytes = true, instance_memory = true, images_import_max_bytes = true, upload_max_bytes = true,
}

local default_limits = {
  instance_max_concurrency = 50, instance_max_timeout = 3600,
  images_import_max_concurrency = 8, images_import_max_timeout = 3600, images_import_max_bytes = 12 << 30,
  upload_max_bytes = 128 << 20,
}

M.limit_names = {
  "instance_max_concurrency", "instance_max_timeout", "instance_max_layer_bytes", "instance_memory",
  "instance_pids", "images_import_max_concurrency", "images_import_max_timeout", "images_import_max_bytes",
  "upload_max_bytes",
}

local is_limit = {}
for _, name in ipairs(M.limit_names) do is_limit[name] = true end

M.permission_names = { "list", "spawn", "spawn_disposable", "import", "cancel", "set_image_tag" }

local known_options = {
  "home", "engine", "keeper", "spare", "address", "port", "base_path", "tokens", "token_file", "project", "cert",
  "key", "key_password", "images", "network", "limits", "registries", "insecure_registries", "log", "grace",
  "connections",
}

-- -- single values ------------------------------------------------------------------------------------------

local function text(value, name)
  if value == nil then return nil end
  if type(value) ~= "string" or value == "" or value:find "%c" then
    raise("invalid", OP, "%s must be a string, got %s", name, quote(value))
  end
  return value
end

local function whole(value, name, least, most)
  local number = type(value) == "number" and math.tointeger(value)
  if not number or number < least or number > most then
    raise("invalid", OP, "%s must be a whole number from %d to %d, got %s", name, least, most, quote(value))
  end
  return number
end

-- As errors.unknown, with what it belongs to in front. "memory" means "instance_memory".
local function unknown(what, kind, name, known)
  local part = type(name) == "string" and #name >= 3 and name:lower()
  local meant
  for _, candidate in ipairs(known) do
    if part and candidate:find(part, 1, true) then meant = meant or candidate end
  end
  local _, problem = pcall(errors.unknown, OP, kind, name, known, meant)
  problem.message = what .. problem.message
  error(problem, 0)
end

--- Raises for a limit that there is not.
---@param name any
---@param what string in front of the message
function M.check_limit(name, what)
  if not is_limit[name] then unknown(what, "limit", name, M.limit_names) end
end

--- Raises for a permission that there is not.
---@param name any
---@param what string in front of the message
function M.check_permission(name, what)
  for _, known in ipairs(M.permission_names) do
    if name == known then return end
  end
  unknown(what, "permission", name, M.permission_names)
end

local function limits(given, what, under)
  local owner = what:gsub("limits%.$", "")
  if given ~= nil and type(given) ~= "table" then
    raise("invalid", OP, "%slimits must be a table, got %s", owner, quote(given))
  end
  given = given or {}
  for name in pairs(given) do M.check_limit(name, owner) end
  local all = {}
  for _, name in ipairs(M.limit_names) do
    local value = given[name]
    if value ~= nil then
      all[name] = sizes[name] and check.size(value, OP, what .. name, 1) or whole(value, what .. name, 1, 1 << 40)
    else
      all[name] = under[name]
    end
  end
  return all
end

-- {"list"}, {list = true} or nothing, which is all of them.
local function permissions(given, what)
  local all = {}
  for _, name in ipairs(M.permission_names) do all[name] = given == nil end
  if given == nil then return all end
  if type(given) ~= "table" then raise("invalid", OP, "%spermissions must be a list of names", what) end
  for key, value in pairs(given) do
    local name = math.type(key) == "integer" and value or key
    M.check_permission(name, what)
    if name == key and type(value) ~= "boolean" then
      raise("invalid", OP, "%spermissions.%s must be true or false", what, name)
    end
    all[name] = name ~= key or value
  end
  return all
end

local function moment(value, what)
  if value == nil then return nil end
  local seconds = type(value) == "number" and value or wire.moment(value)
  if not seconds then
    raise("invalid", OP, "%sexpires must be a time such as 2027-01-31T00:00:00Z, got %s", what, quote(value))
  end
  return seconds
end

-- -- tokens -------------------------------------------------------------------------------------------------

---@class bough.serve.token
---@field name string for the log
---@field hash string SHA-256 of the token, in hexadecimal digits
---@field uuid string what `whoami` says
---@field permissions table<string, boolean>
---@field limits bough.serve.limits
---@field expires number? seconds since the epoch

local token_keys = { "name", "token", "sha256", "permissions", "limits", "expires" }

--- How short a token may be where others than this machine's users can try.
M.least_token = 16

-- A stable name of a token that tells nothing about it.
local function token_uuid(hash)
  local hex = core.sha256("bough token " .. hash)
  return ("%s-%s-5%s-8%s-%s"):format(hex:sub(1, 8), hex:sub(9, 12), hex:sub(14, 16), hex:sub(18, 20), hex:sub(21, 32))
end

local function token_of(given, index, under)
  local what = ("tokens[%d]: "):format(index)
  if type(given) == "string" then given = { token = given } end
  given = errors.check_keys(OP, given, token_keys)
  local name = text(given.name, what .. "name") or ("token %d"):format(index)
  what = ("token %s: "):format(quote(name))
  local secret, hash = given.token, given.sha256
  if (secret == nil) == (hash == nil) then
    raise("invalid", OP, "%sgive either the token or its sha256", what)
  end
  if secret ~= nil then
    -- never shown, whatever is wrong with it
    if type(secret) ~= "string" or not secret:find "^[\x21-\x7e]+$" then
      raise("invalid", OP, "%sa token is a string of printable characters without blanks", what)
    end
    hash = core.sha256(secret)
  elseif type(hash) ~= "string" or #hash ~= 64 or hash:find "%X" then
    raise("invalid", OP, "%ssha256 must be 64 hexadecimal digits", what)
  end
  hash = hash:lower()
  return {
    name = name, hash = hash, uuid = token_uuid(hash), permissions = permissions(given.permissions, what),
    limits = limits(given.limits, what, under), expires = moment(given.expires, what),
    is_short = secret ~= nil and #secret < M.least_token,
  }
end

local function split(value)
  local all = {}
  for word in value:gmatch "[^,%s]+" do all[#all + 1] = word end
  return all
end

--- Reads a token file: a section "[name]" for each token, with lines "key = value" of token or sha256, permissions,
--- expires and limits. Waits. Raises `denied` for a file that others can read.
---@param path string
---@return table[] tokens as the option `tokens` takes them
function M.token_file(path)
  local stat, message, number = core.fs.stat(path)
  if not stat then
    error(errors.new(number == 13 and "denied" or "not_found", OP, { errno = number }, "token file %s: %s",
      quote(path), number == 2 and "no such file" or message), 0)
  end
  if stat.kind ~= "file" then raise("invalid", OP, "token file %s: it is not a file", quote(path)) end
  if stat.mode & 63 ~= 0 then -- 077
    raise("denied", OP, "token file %s: others than its owner may use it (mode %04o): chmod 600 %s", quote(path),
      stat.mode & 511, path)
  end
  local tokens, current, seen = {}, nil, {}
  local at = 0
  for line in (core.fs.read(path, 1 << 20) .. "\n"):gmatch "(.-)\r?\n" do
    at = at + 1
    local function refuse(fmt, ...)
      raise("invalid", OP, "token file %s, line %d: %s", quote(path), at, fmt:format(...))
    end
    local section = line:match "^%s*%[%s*(.-)%s*%]%s*$"
    local key, value = line:match "^%s*([%w_]+)%s*=%s*(.-)%s*$"
    if section then
      if section == "" or seen[section] then refuse("each section has a name of its own") end
      seen[section] = true
      current = { name = section }
      tokens[#tokens + 1] = current
    elseif key then
      if not current then refuse("%s stands before the first section, [name]", key) end
      if key == "permissions" then
        current.permissions = split(value)
        for _, name in ipairs(current.permissions) do
          M.check_permission(name, ("token file %s, line %d, section [%s]: "):format(quote(path), at, current.name))
        end
      elseif key == "token" or key == "sha256" or key == "expires" then
        current[key] = key == "expires" and tonumber(value) or value
      elseif is_limit[key] then
        current.limits = current.limits or {}
        current.limits[key] = tonumber(value) or value
      else
        refuse("unknown key %s", quote(key))
      end
    elseif line:find "%S" and not line:find "^%s*[#;]" then
      refuse("neither [name], key = value nor a comment")
    end
  end
  if not tokens[1] then raise("invalid", OP, "token file %s: there is no token in it", quote(path)) end
  return tokens
end

-- 256 bits, of the kernel's generator.
local function random_token()
  local file <close> = assert(io.open("/dev/urandom", "rb"))
  return (file:read(32):gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local function tokens_of(opts, config)
  local given = opts.tokens
  if given ~= nil and opts.token_file ~= nil then raise("invalid", OP, "tokens and token_file exclude each other") end
  if opts.token_file ~= nil then given = M.token_file(text(opts.token_file, "token_file")) end
  if given == nil then
    if not config.is_loopback then
      raise("invalid", OP, "address %s can be reached from elsewhere: it needs tokens of your own (tokens, token_file)",
        config.address)
    end
    config.generated = random_token()
    given = { { name = "generated", token = config.generated } }
  end
  if type(given) ~= "table" or given[1] == nil then
    raise("invalid", OP, "tokens must be a list of at least one, got %s", quote(given))
  end
  local all, hashes, names = {}, {}, {}
  for i, one in ipairs(given) do
    local token = token_of(one, i, config.limits)
    if hashes[token.hash] then
      raise("invalid", OP, "%s and %s are the same token", quote(hashes[token.hash]), quote(token.name))
    elseif names[token.name] then
      raise("invalid", OP, "two tokens have the name %s", quote(token.name))
    elseif token.is_short and not config.is_loopback then
      raise("invalid", OP, "token %s is shorter than %d characters, which is too easy to guess", quote(token.name),
        M.least_token)
    end
    hashes[token.hash], names[token.name] = token.name, true
    all[i] = token
  end
  return all
end

-- -- the rest -------------------------------------------------------------------------------------------------

local function is_loopback(address)
  return address == "localhost" or address == "::1" or address == "[::1]"
    or address:find "^127%.%d+%.%d+%.%d+$" ~= nil
end

-- What listen(2) takes; the last word has whoever listens.
local function address_of(value)
  value = text(value, "address") or "127.0.0.1"
  if value ~= "localhost" and not value:find "^%d+%.%d+%.%d+%.%d+$" and not value:find "^%[?%x*:[%x:.]+%]?$" then
    raise("invalid", OP, 'address must be numeric, such as "0.0.0.0" or "::", or "localhost"; got %s', quote(value))
  end
  return value
end

local function base_path(value)
  if value == nil then return "" end
  if type(value) ~= "string" or value:find "[^%w%-._~/]" or value:find "//" or value:find "%.%." then
    raise("invalid", OP, 'base_path must be a path such as "/sandboxes", got %s', quote(value))
  end
  value = value:gsub("/+$", "")
  return value == "" and "" or value:gsub("^/?", "/", 1)
end

local function names(value, name)
  if value == nil or type(value) == "table" and next(value) == nil then return {} end
  return check.strings(value, OP, name)
end

-- Hosts, some with a port: as a reference has them.
local function hosts(value, name)
  local all = {}
  for _, host in ipairs(names(value, name)) do
    local good, ref = pcall(reference.parse, host .. "/x/y", OP)
    if not good or ref.domain == nil or host:find "/" then
      raise("invalid", OP, "%s: %s is no host of a registry", name, quote(host))
    end
    all[ref.domain] = true
  end
  return all
end

local function tls(opts, config)
  for _, name in ipairs { "cert", "key" } do
    local path = text(opts[name], name)
    if path then
      local stat, message = core.fs.stat(path)
      if not stat or stat.kind ~= "file" then
        raise("not_found", OP, "%s %s: %s", name, quote(path), stat and "it is not a file" or message)
      end
      config[name] = core.fs.read(path, MOST_PEM)
    end
  end
  config.key_password = text(opts.key_password, "key_password")
  if (config.cert == nil) ~= (config.key == nil) then
    raise("invalid", OP, "cert and key go together: %s is missing", config.cert and "key" or "cert")
  end
  if not config.cert and not config.is_loopback then
    raise("invalid", OP, "address %s can be reached from elsewhere: it needs TLS (cert and key)", config.address)
  end
end

local function grace_of(value)
  if value == nil then return 10 end
  if type(value) ~= "number" or not (value >= 0 and value < math.huge) then
    raise("invalid", OP, "grace must be seconds, got %s", quote(value))
  end
  return value
end

local function log_of(value)
  if value == nil or value == false then return nil end
  if type(value) == "function" or io.type(value) == "file" then return value end
  return text(value, "log")
end

--- Checks the options of a server and fills them up. Waits.
---@param opts table? those of `bough.serve`
---@return table config
function M.read(opts)
  opts = errors.check_keys(OP, opts, known_options)
  if opts.engine ~= nil and (opts.home ~= nil or opts.keeper ~= nil or opts.spare ~= nil) then
    raise("invalid", OP, "engine excludes home, keeper and spare: it has its own")
  end
  local config = {
    engine = opts.engine, home = text(opts.home, "home"), keeper = text(opts.keeper, "keeper"), spare = opts.spare,
    address = address_of(opts.address),
    port = opts.port == nil and 8080 or whole(opts.port, "port", 0, 65535),
    base_path = base_path(opts.base_path), project = text(opts.project, "project"),
    images = names(opts.images, "images"), network = opts.network or "none",
    limits = limits(opts.limits, "limits.", default_limits),
    registries = opts.registries ~= nil and hosts(opts.registries, "registries") or nil,
    insecure_registries = hosts(opts.insecure_registries, "insecure_registries"),
    log = log_of(opts.log), grace = grace_of(opts.grace),
    connections = opts.connections ~= nil and whole(opts.connections, "connections", 1, 1000000) or nil,
  }
  if config.network ~= "none" and config.network ~= "host" then
    errors.unknown(OP, "network", config.network, { "none", "host" })
  end
  config.is_loopback = is_loopback(config.address)
  tls(opts, config)
  config.tokens = tokens_of(opts, config)
  return config
end

return M
